//! Coming to a mesh through its seeds: joining the one they are in, or, where there is none and this node is one of
//! those that are to found it (`bootstrapExpect`), agreeing with them who does.

use std::{path::Path, time::Duration};

use futures::{StreamExt, stream};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::{
    founding::{Acceptor, Group, Proposer, Verdict},
    members::MemberTable,
    names::NodeId,
    quic_transport::{FoundingAsk, GossipEndpoint, JoinAsk, JoinError, JoinRefusal, JoinRequest, Welcome},
};

/// Between two rounds over the seeds of a node that wants in.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two questions of one attempt to choose a founder.
const NEXT_QUESTION: Duration = Duration::from_millis(50);
/// A seed that answers no question of the founding within this is not there.
const FOUNDING_TIMEOUT: Duration = Duration::from_secs(10);

/// What a node came to.
#[derive(Debug)]
pub(crate) enum Gathered {
    /// In a mesh, with these members.
    Member(MemberTable),
    /// The others have agreed that this node founds it.
    Founder,
}

/// Asks the seeds, and answers those that ask meanwhile: without a mesh of its own, this node lets nobody in.
pub(crate) struct Gathering<'e> {
    pub endpoint: &'e GossipEndpoint,
    pub seeds: &'e [String],
    pub request: JoinRequest,
    /// `None`: it only joins.
    pub founding: Option<Founding<'e>>,
    /// The last trouble told, so that each is told once.
    pub said: String,
    /// What is waited for, in words, for whoever asks this node meanwhile.
    pub waiting: &'e watch::Sender<String>,
}

/// This node's part in choosing a founder.
pub(crate) struct Founding<'e> {
    dir: &'e Path,
    group: Group,
    acceptor: Acceptor,
    proposer: Proposer,
}

impl<'e> Founding<'e> {
    pub fn new(dir: &'e Path, me: &NodeId, group: Group) -> anyhow::Result<Self> {
        let (acceptor, proposer) = (Acceptor::load(dir)?, Proposer::new(me.clone(), &group));
        Ok(Self { dir, group, acceptor, proposer })
    }

    /// Answers another founding node. Kept on disk before it is said.
    fn answer(&mut self, me: &NodeId, ask: &FoundingAsk) -> JoinRefusal {
        if ask.group != self.group.digest() {
            return JoinRefusal::OtherGroup;
        }
        let before = self.acceptor.clone();
        let answer = self.acceptor.answer(me, &ask.ask);
        if self.acceptor != before
            && let Err(error) = self.acceptor.store(self.dir)
        {
            warn!(%error, "a promise can't be kept on disk, so it is not given");
            self.acceptor = before;
            return JoinRefusal::NotTaking;
        }
        JoinRefusal::Founding(answer)
    }
}

impl Gathering<'_> {
    /// Returns when this node is in a mesh or is to found it; waits for that as long as it takes.
    ///
    /// # Errors
    /// When a seed refuses this node for good, or the disk does not take what must be on it.
    pub async fn run(mut self, asks: &mut mpsc::Receiver<JoinAsk>) -> anyhow::Result<Gathered> {
        self.waiting.send_replace(format!("joining: asking {}", self.seeds.join(", ")));
        loop {
            let answers = self.ask_all(asks).await;
            let mut pause = PAUSE.mul_f64(0.5 + rand::random::<f64>());
            let mut heard = Vec::new();
            let mut mesh = false;
            for (seed, answer) in answers {
                match answer {
                    Ok(welcome) => {
                        info!(seed, members = welcome.members.members.len(), "joined");
                        return Ok(Gathered::Member(welcome.members));
                    }
                    Err(JoinError::Refused { refusal: JoinRefusal::Founding(answer), .. }) => heard.push(answer),
                    Err(JoinError::Refused { refusal, .. }) if !refusal.is_passing() => {
                        anyhow::bail!("seed {seed} refused this node: {refusal}");
                    }
                    Err(error) => {
                        let has_mesh = matches!(
                            error,
                            JoinError::Refused { refusal: JoinRefusal::NoLeader | JoinRefusal::NotTaking, .. }
                        );
                        mesh |= has_mesh;
                        self.say(format!("waiting for a seed that lets this node in: {error}"));
                    }
                }
            }
            let Some(founding) = &mut self.founding else {
                self.wait(pause, asks).await;
                continue;
            };
            if mesh {
                founding.proposer.meets_a_mesh();
            } else {
                match founding.proposer.on_answers(&heard, rand::random()) {
                    Verdict::Founds => {
                        founding.acceptor.chosen = true;
                        founding.acceptor.store(founding.dir)?;
                        info!("the founding nodes have agreed: this node founds the mesh");
                        return Ok(Gathered::Founder);
                    }
                    Verdict::GoesOn => pause = NEXT_QUESTION,
                    Verdict::Waits { seen } => {
                        debug!(seen, "no founder yet");
                        let expect = founding.group.expect();
                        let who = format!("joining: {seen} of {expect} nodes that found the mesh together are there");
                        self.waiting.send_replace(if self.said.is_empty() { who } else { format!("{who}; {}", self.said) });
                    }
                    Verdict::Waiting(founder) => self.say(format!(
                        "node {founder} is to found the mesh; waiting for it. If it is gone for good, remove {} from the \
                         data directories of all founding nodes and start them again",
                        crate::founding::FOUNDING_FILE
                    )),
                }
            }
            self.wait(pause, asks).await;
        }
    }

    /// Asks all seeds at once where a founder is to be chosen, one after the other where one is enough.
    async fn ask_all(&mut self, asks: &mut mpsc::Receiver<JoinAsk>) -> Vec<(String, Result<Welcome, JoinError>)> {
        let mut request = self.request.clone();
        let mut at_once = 1;
        let mut limit = Duration::MAX;
        if let Some(founding) = &self.founding {
            let group = founding.group.digest().to_owned();
            request.founding = Some(FoundingAsk { group, ask: founding.proposer.ask().clone() });
            (at_once, limit) = (self.seeds.len().max(1), FOUNDING_TIMEOUT);
        }
        let (endpoint, request) = (self.endpoint, &request);
        let one = |seed: &String| {
            let seed = seed.clone();
            async move {
                let answer = match tokio::time::timeout(limit, endpoint.ask_to_join(&seed, request)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(JoinError::Silent { seed: seed.clone(), after: limit }),
                };
                (seed, answer)
            }
        };
        let mut answers = Vec::new();
        let mut asked = std::pin::pin!(stream::iter(self.seeds).map(one).buffer_unordered(at_once));
        loop {
            tokio::select! {
                answer = asked.next() => {
                    let Some((seed, answer)) = answer else { return answers };
                    let done = answer.is_ok();
                    answers.push((seed, answer));
                    if done {
                        return answers;
                    }
                }
                Some(ask) = asks.recv() => answer(&mut self.founding, endpoint.node(), ask),
            }
        }
    }

    /// Answers askers for a while.
    async fn wait(&mut self, pause: Duration, asks: &mut mpsc::Receiver<JoinAsk>) {
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(ask) = asks.recv() => answer(&mut self.founding, self.endpoint.node(), ask),
            }
        }
    }

    fn say(&mut self, text: String) {
        self.waiting.send_replace(format!("joining: {text}"));
        if text != self.said {
            warn!("{text}");
            self.said = text;
        }
    }
}

fn answer(founding: &mut Option<Founding<'_>>, me: &NodeId, ask: JoinAsk) {
    let refusal = match (founding, &ask.request.founding) {
        (Some(founding), Some(question)) => founding.answer(me, question),
        (Some(_), None) | (None, _) => JoinRefusal::NotFounded,
    };
    if ask.reply.send(Err(refusal)).is_err() {
        debug!(peer = %ask.peer, "a node that wanted in went away");
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::{
        identity::NodeIdentity,
        quic_transport::{Advertise, EndpointSettings},
        tls::{MeshTls, install_crypto_provider},
        token::JoinToken,
    };

    const PATIENCE: Duration = Duration::from_secs(60);

    struct Node {
        endpoint: Arc<GossipEndpoint>,
        asks: mpsc::Receiver<JoinAsk>,
        dir: tempfile::TempDir,
    }

    fn start(number: u8, token: &JoinToken) -> Node {
        install_crypto_provider();
        let identity = NodeIdentity::from_seed([number; 32]);
        let tls = MeshTls::new(&identity, std::slice::from_ref(token)).unwrap();
        let settings = EndpointSettings::new(([127, 0, 0, 1], 0).into(), Advertise::Detect, 1);
        let (endpoint, asks) = GossipEndpoint::bind(identity.node().clone(), &tls, &settings).unwrap();
        Node { endpoint: Arc::new(endpoint), asks, dir: tempfile::tempdir().unwrap() }
    }

    fn seed(node: &Node) -> String {
        node.endpoint.local_addr().unwrap().to_string()
    }

    fn table(token: &JoinToken) -> MemberTable {
        MemberTable::new(token.mesh().clone(), 7, BTreeMap::new())
    }

    /// Gathers, and if it is to found the mesh, founds it: it lets everybody in from then on.
    async fn gather(mut node: Node, seeds: Vec<String>, expect: Option<usize>, token: JoinToken) -> (Gathered, Node) {
        let request = JoinRequest {
            mesh: token.mesh().clone(),
            name: "n".into(),
            version: "0.1.0".into(),
            addresses: Vec::new(),
            founding: None,
        };
        let group = expect.map(|expect| Group::new(expect, &seeds).unwrap());
        let founding = group.map(|group| Founding::new(node.dir.path(), node.endpoint.node(), group).unwrap());
        let waiting = watch::Sender::default();
        let (endpoint, said) = (&node.endpoint, String::new());
        let gathering = Gathering { endpoint, seeds: &seeds, request, founding, said, waiting: &waiting };
        let gathered = gathering.run(&mut node.asks).await.unwrap();
        (gathered, node)
    }

    fn let_in(node: Node, token: JoinToken) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            let Node { endpoint: _listens, mut asks, dir: _kept } = node;
            while let Some(ask) = asks.recv().await {
                let _gone = ask.reply.send(Ok(Welcome { leader: None, members: table(&token) }));
            }
        })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn three_that_start_at_once_found_one_mesh_and_a_fourth_only_joins() {
        let token = JoinToken::found(&mut rand::rng());
        let nodes: Vec<Node> = (1..=3).map(|number| start(number, &token)).collect();
        let seeds: Vec<String> = nodes.iter().map(seed).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for node in nodes {
            let (seeds, token) = (seeds.clone(), token.clone());
            tasks.spawn(async move {
                let (gathered, node) = gather(node, seeds, Some(3), token.clone()).await;
                let founds = matches!(gathered, Gathered::Founder);
                assert_eq!(Acceptor::load(node.dir.path()).unwrap().chosen, founds);
                (founds, let_in(node, token))
            });
        }
        let fourth = start(4, &token);
        tasks.spawn(async move {
            let (gathered, node) = gather(fourth, seeds, None, token.clone()).await;
            assert!(matches!(gathered, Gathered::Member(members) if members == table(&token)));
            (false, let_in(node, token))
        });
        let done = tokio::time::timeout(PATIENCE, tasks.join_all()).await.expect("all come to a mesh");
        assert_eq!(done.iter().filter(|(founds, _)| *founds).count(), 1);
    }

    /// One with another list would decide with another majority. It is told so, and no promise is made to it.
    #[test]
    fn a_node_with_another_list_gets_no_promise() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeIdentity::from_seed([1; 32]).node().clone();
        let group = |expect: usize, count: usize| {
            Group::new(expect, &(0..count).map(|n| format!("n{n}:7946")).collect::<Vec<_>>()).unwrap()
        };
        let mut founding = Founding::new(dir.path(), &node, group(2, 3)).unwrap();
        let mut proposer = Proposer::new(node.clone(), &group(1, 1));
        let look = proposer.ask().clone();
        let JoinRefusal::Founding(seen) =
            founding.answer(&node, &FoundingAsk { group: group(2, 3).digest().to_owned(), ask: look })
        else {
            panic!("one of the same list is answered");
        };
        assert_eq!(proposer.on_answers(&[seen], 0), Verdict::GoesOn);
        let ask = FoundingAsk { group: group(3, 3).digest().to_owned(), ask: proposer.ask().clone() };
        let refusal = founding.answer(&node, &ask);
        assert!(refusal.is_passing() && refusal.to_string().contains("other seeds or another bootstrapExpect"));
        assert_eq!(Acceptor::load(dir.path()).unwrap(), Acceptor::default());
        let ask = FoundingAsk { group: group(2, 3).digest().to_owned(), ..ask };
        assert!(matches!(founding.answer(&node, &ask), JoinRefusal::Founding(_)));
        assert_ne!(Acceptor::load(dir.path()).unwrap(), Acceptor::default(), "on disk before it is said");
    }
}
