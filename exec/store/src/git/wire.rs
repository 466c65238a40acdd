//! One conversation with a git server: its names, and packs of objects. Blocks.
//!
//! Nothing of this machine's git configuration is read, no program is started but `ssh`, and nothing that comes is
//! executed: a pack is bytes that are indexed.

use std::{
    any::Any,
    io::{self, BufRead, Read},
    net::{TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use gix_hash::ObjectId;
use gix_protocol::{
    Handshake, LsRefsCommand,
    credentials::{helper::Action, protocol::Outcome as Identified},
    fetch::{self, Arguments, Negotiate, negotiate},
    handshake::Ref,
    ls_refs::RefPrefixes,
};
use gix_transport::{
    Protocol, Service,
    client::{
        Capabilities, TransportWithoutIO,
        blocking_io::{Transport, connect, http, ssh},
        git,
    },
};
use gix_utils::progress::Discard;

use super::{
    address::{Address, Way},
    inflow::{Ended, Inflow},
    revision::Tip,
    trouble::{self, Told},
};
use crate::{config::GitAccount, error::StoreError, patience::Patience};

/// Threads that unpack one pack: the node has other things to do.
const THREADS_MAX: usize = 4;
/// Largest object that is unpacked: it is held in memory whole. Larger files belong to LFS.
const OBJECT_BYTES_MAX: usize = 4 << 30;
/// Port of git's own daemon.
const DAEMON_PORT: u16 = 9418;

type Line = Box<dyn Transport + Send>;

/// With whom, and with whose word.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// The repository.
    pub address: Address,
    /// This node's accounts.
    pub accounts: Vec<GitAccount>,
    /// How `ssh` is started.
    pub ssh: String,
    /// Time to connect, and longest silence.
    pub patience: Patience,
    /// Whether `https://` can be spoken: there are root certificates.
    pub tls: bool,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// Objects, with all that belongs to them.
    pub wants: Vec<ObjectId>,
    /// Whether only the wanted commits themselves are, without those before them.
    pub shallow: bool,
    /// What is left out, where the server can leave it out.
    pub filter: Option<&'static str>,
}

/// How an ask ended that brought nothing.
#[derive(Debug)]
pub(super) enum Failed {
    /// The server does not give it: such an object is not there, or it gives only what its names lead to.
    NotGiven(String),
    /// Anything else.
    Other(StoreError),
}

/// A conversation.
pub(super) struct Session {
    peer: Peer,
    line: Line,
    hello: Handshake,
}

impl Session {
    /// Opens a repository.
    pub fn open(peer: &Peer) -> Result<Self, StoreError> {
        let tell = |told| trouble::opening(&peer.address, peer.account(&peer.address.url).is_some(), told);
        let mut line = peer.connect().map_err(tell)?;
        let authenticate = |action: Action| {
            // Never stored and never asked for: whose they are is written in node.yaml.
            let Action::Get(context) = action else { return Ok(None) };
            let url = context.url.as_ref().map(ToString::to_string).unwrap_or_default();
            Ok(peer.account(&url).map(|account| Identified { identity: account.identity(), next: context.into() }))
        };
        let hello = gix_protocol::handshake(&mut line, Service::UploadPack, authenticate, Vec::new(), &mut Discard);
        let hello = hello.map_err(|e| {
            let mut told = Told::of(&e);
            told.denied |= e.is_unauthenticated();
            tell(told)
        })?;
        if hello.capabilities.capability("object-format").and_then(|c| c.value()).is_some_and(|v| v != "sha1") {
            return Err(StoreError::NotFound {
                place: peer.address.url.clone(),
                found: "its objects are named by SHA-256, which is not read here".into(),
                hint: "name a repository whose object format is sha1".into(),
            });
        }
        let mut hello = hello;
        if hello.server_protocol_version != Protocol::V2 {
            hello.capabilities = counted_from_tips(hello.capabilities);
        }
        Ok(Self { peer: peer.clone(), line, hello })
    }

    /// Whether the server can leave out what a task does not need.
    pub fn filters(&self) -> bool {
        let fetch = self.hello.capabilities.capability("fetch");
        self.is_v2() && fetch.and_then(|f| f.supports("filter")) == Some(true)
    }

    fn is_v2(&self) -> bool {
        self.hello.server_protocol_version == Protocol::V2
    }

    /// The server's names: all, or those that begin with one of these.
    pub fn tips(&mut self, prefixes: Option<&[String]>) -> Result<Vec<Tip>, StoreError> {
        let refs = match &self.hello.refs {
            // Servers of old tell all of them in the first breath.
            Some(refs) => refs.clone(),
            None => {
                let prefixes = prefixes.map(|names| {
                    let mut all = RefPrefixes::new();
                    all.extend(names.iter().map(|name| name.as_str().into()));
                    all
                });
                let command = LsRefsCommand::new(prefixes, &self.hello.capabilities, agent());
                command
                    .invoke_blocking(&mut self.line, &mut Discard, false)
                    .map_err(|e| trouble::opening(&self.peer.address, true, Told::of(&e)))?
            }
        };
        Ok(refs.into_iter().filter_map(tip).collect())
    }

    /// What a commit is asked for by: itself, and with servers of old the tag that leads to it, where only a tag does.
    pub fn wanted_as(&self, commit: ObjectId) -> ObjectId {
        let tips = || self.hello.refs.iter().flatten().cloned().filter_map(tip);
        if tips().any(|tip| tip.want == commit) {
            return commit;
        }
        tips().find(|tip| tip.object == commit).map_or(commit, |tip| tip.want)
    }

    /// Receives a pack into a folder and indexes it there; the index's path, and `None` for an empty one.
    pub fn receive(&mut self, ask: &Ask, folder: &Path, inflow: &Inflow<'_>) -> Result<Option<PathBuf>, Failed> {
        let stop = AtomicBool::new(false);
        let mut index = None;
        let shallow = match ask.shallow {
            true => fetch::Shallow::DepthAtRemote(std::num::NonZeroU32::MIN),
            false => fetch::Shallow::NoChange,
        };
        let context = fetch::Context {
            handshake: &mut self.hello,
            transport: &mut self.line,
            user_agent: agent(),
            trace_packetlines: false,
        };
        let options = fetch::Options {
            // The library keeps there where history is cut off; of one repository and one pull.
            shallow_file: folder.join("shallow"),
            shallow: &shallow,
            tags: fetch::Tags::None,
            reject_shallow_remote: false,
        };
        let consume = |pack: &mut dyn BufRead,
                       progress: &mut dyn gix_utils::progress::DynNestedProgress,
                       stop: &AtomicBool| {
            let mut pack = Watched { pack, inflow };
            let options = gix_pack::bundle::write::Options {
                thread_limit: Some(THREADS_MAX),
                alloc_limit_bytes: Some(OBJECT_BYTES_MAX),
                ..Default::default()
            };
            let lookup = None::<gix_object::find::Never>;
            let kind = gix_hash::Kind::Sha1;
            let written =
                gix_pack::Bundle::write_to_directory(&mut pack, Some(folder), progress, stop, lookup, kind, options)?;
            index = written.index_path;
            Ok(true)
        };
        match gix_protocol::fetch(&mut Plain(ask), consume, Discard, &stop, context, options) {
            Ok(_) => Ok(index),
            Err(e) => Err(self.failed(&Told::of(&e), folder, inflow)),
        }
    }

    /// What a pack that did not arrive comes to.
    fn failed(&self, told: &Told, folder: &Path, inflow: &Inflow<'_>) -> Failed {
        let place = self.peer.address.url.clone();
        let endpoint = self.peer.address.host.clone();
        let lost =
            |found| StoreError::Unreachable { place: place.clone(), endpoint: endpoint.clone(), tries: 1, found };
        if let Some(said) = told.said() {
            return Failed::NotGiven(said);
        }
        Failed::Other(match inflow.ended() {
            Some(Ended::Stopped(error)) => error,
            Some(Ended::Broken(found)) => lost(found),
            // It had to do with the disk, if it was not the line.
            Some(Ended::Whole) | None if told.io == Some(io::ErrorKind::StorageFull) => {
                StoreError::disk("write", &folder.join("pack"), io::ErrorKind::StorageFull.into())
            }
            Some(Ended::Whole) => lost(format!("the answer ended after {} bytes: {}", inflow.bytes(), told.words)),
            None if inflow.bytes() == 0 => {
                trouble::opening(&self.peer.address, true, Told { words: told.words.clone(), ..Told::default() })
                    .or_line(told, lost)
            }
            None => StoreError::Damaged { place: place.clone(), found: told.words.clone() },
        })
    }
}

trait OrLine {
    fn or_line(self, told: &Told, lost: impl Fn(String) -> StoreError) -> Self;
}

impl OrLine for StoreError {
    /// Before the first byte of a pack an error is the line's, or the server answered something that is none.
    fn or_line(self, told: &Told, lost: impl Fn(String) -> StoreError) -> Self {
        if told.broken || told.io.is_some() || told.status.is_some() { lost(told.words.clone()) } else { self }
    }
}

impl Peer {
    /// The account for requests to a URL of this repository's host.
    pub fn account(&self, url: &str) -> Option<&GitAccount> {
        self.accounts.iter().find(|account| account.is_for(url))
    }

    fn connect(&self) -> Result<Line, Told> {
        let address = &self.address;
        let mut options = connect::Options { version: Protocol::V2, ..Default::default() };
        match address.way {
            Way::Daemon => return self.dial(),
            Way::Ssh => {
                options.ssh.command = Some(self.ssh.clone().into());
                options.ssh.kind = Some(ssh::ProgramKind::Ssh);
            }
            Way::Http | Way::Https => {}
        }
        let mut line = connect::connect(address.url.as_str(), options).map_err(|e| Told::of(&e))?;
        if matches!(address.way, Way::Http | Way::Https) {
            line.configure(&self.http()).map_err(|e| Told::of(&e))?;
        }
        Ok(line)
    }

    /// git's own protocol over TCP. With a limit to silence, which the library's own connection has not.
    fn dial(&self) -> Result<Line, Told> {
        let (address, patience) = (&self.address, &self.patience);
        let (host, port) = (address.bare_host(), address.port.unwrap_or(DAEMON_PORT));
        let told = |e: io::Error| Told { broken: true, ..Told::of(&e) };
        let mut last = io::Error::new(io::ErrorKind::HostUnreachable, "the name has no address");
        for to in (host.trim_matches(['[', ']']), port).to_socket_addrs().map_err(told)? {
            match TcpStream::connect_timeout(&to, patience.connect) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(patience.silence)).map_err(told)?;
                    stream.set_write_timeout(Some(patience.silence)).map_err(told)?;
                    let read = stream.try_clone().map_err(told)?;
                    let (path, mode) = (address.path.as_str(), git::ConnectMode::Daemon);
                    let host = Some((host.to_owned(), address.port));
                    return Ok(Box::new(git::blocking_io::Connection::new(
                        read,
                        stream,
                        Protocol::V2,
                        path,
                        host,
                        mode,
                        false,
                    )));
                }
                Err(e) => last = e,
            }
        }
        Err(told(last))
    }

    fn http(&self) -> http::Options {
        let (patience, tls) = (self.patience, self.tls);
        let configure = move |client: reqwest::blocking::ClientBuilder| {
            // Of a blocking client this is the longest silence, not the whole.
            let client = client.connect_timeout(patience.connect).timeout(patience.silence);
            Ok(if tls { client } else { client.tls_certs_only([]) })
        };
        let backend = http::reqwest::Options { configure_client: Some(Box::new(configure)), configure_request: None };
        let backend: Arc<Mutex<dyn Any + Send + Sync>> = Arc::new(Mutex::new(backend));
        http::Options { backend: Some(backend), ..Default::default() }
    }
}

/// The same without `deepen-relative`. In the protocol of old the library asks for everything a server can do, and with
/// this one a depth of one would be counted from what is here already: from nothing, so that all of the history comes.
fn counted_from_tips(capabilities: Capabilities) -> Capabilities {
    let word = |c: gix_transport::client::capabilities::Capability<'_>| match c.value() {
        Some(value) => format!("{}={value}", c.name()),
        None => c.name().to_string(),
    };
    let kept = capabilities.iter().filter(|c| c.name() != "deepen-relative").map(word);
    let line = format!("\0{}", kept.collect::<Vec<_>>().join(" "));
    Capabilities::from_bytes(line.as_bytes()).map_or(capabilities, |(kept, _)| kept)
}

/// How this client names itself to git servers.
fn agent() -> (&'static str, Option<String>) {
    ("agent", Some(concat!("git/mloc-", env!("CARGO_PKG_VERSION")).to_owned()))
}

fn tip(found: Ref) -> Option<Tip> {
    let (name, object, tag) = match found {
        Ref::Peeled { full_ref_name, tag, object } => (full_ref_name, object, Some(tag)),
        Ref::Direct { full_ref_name, object } => (full_ref_name, object, None),
        Ref::Symbolic { full_ref_name, object, tag, .. } => (full_ref_name, object, tag),
        Ref::Unborn { .. } => return None,
    };
    Some(Tip { name: name.to_string(), object, want: tag.unwrap_or(object) })
}

/// Negotiation for who has nothing: the wants, and done.
struct Plain<'a>(&'a Ask);

impl Negotiate for Plain<'_> {
    fn mark_complete_and_common_ref(&mut self) -> gix_error::Result<negotiate::Action> {
        Ok(negotiate::Action::MustNegotiate { remote_ref_target_known: Vec::new() })
    }

    fn add_wants(&mut self, arguments: &mut Arguments, _: &[bool]) -> bool {
        for want in &self.0.wants {
            arguments.want(want);
        }
        if let Some(filter) = self.0.filter.filter(|_| arguments.can_use_filter()) {
            arguments.filter(filter);
        }
        !self.0.wants.is_empty()
    }

    fn one_round(
        &mut self,
        _: &mut negotiate::one_round::State,
        _: &mut Arguments,
        _: Option<&fetch::Response>,
    ) -> gix_error::Result<(negotiate::Round, bool)> {
        let round = negotiate::Round {
            haves_sent: 0,
            in_vain: 0,
            haves_to_send: 0,
            previous_response_had_at_least_one_in_common: false,
        };
        Ok((round, true))
    }
}

/// A pack on its way past an [`Inflow`].
struct Watched<'a, 'b> {
    pack: &'a mut dyn BufRead,
    inflow: &'a Inflow<'b>,
}

impl Read for Watched<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.pack.read(into);
        self.inflow.pass(read)
    }
}

impl BufRead for Watched<'_, '_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.pack.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.pack.consume(bytes);
        // An error stays with the inflow and comes out at its next call.
        drop(self.inflow.pass(Ok(bytes)));
    }
}
