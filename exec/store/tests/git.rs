//! Repositories as sources, against git's own servers: `git http-backend`, `git daemon`, and git behind a stand-in for
//! ssh. The LFS server is a fixture, which the real `git-lfs` can use too where it is installed.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    sync::{Arc, atomic::Ordering},
};

use mloc_core::{
    ledger::entry::FailureClass,
    task::spec::{Location, Pin},
};
use mloc_store::{GitAccount, Pulled, Secret, StoreConfig, StoreError};
use support::{
    config, contents, fill,
    gits::{Gits, Work, git, git_command, git_lfs, pointer},
    node, noise, seen, skip, unsaid, unseen,
};

fn source(url: &str, revision: Option<&str>, path: Option<&str>) -> Location {
    Location::Git { url: url.to_owned(), revision: revision.map(str::to_owned), path: path.map(str::to_owned) }
}

/// A source as a node with a cache of its own has it.
async fn pull(config: &StoreConfig, source: &Location, pin: Option<&Pin>, cache: &Path) -> Result<Pulled, StoreError> {
    node(config, cache).pull(source, pin, unseen(), unsaid()).await
}

fn text(files: &BTreeMap<String, Vec<u8>>) -> String {
    let each = files.iter().map(|(name, bytes)| format!("{name}={}", String::from_utf8_lossy(bytes).trim_end()));
    each.collect::<Vec<_>>().join(" ")
}

/// A history of some commits: `main` at the last one, tag `v1` (with a message) at the first, `light` at the second.
fn history(work: &Work) -> [String; 3] {
    let large = noise(7, 3 << 20);
    let first = work.commit(&[("a.txt", b"one"), ("old.bin", &large)]);
    git(&work.path, &["tag", "--annotate", "--message=first", "v1"]);
    fs::remove_file(work.path.join("old.bin")).unwrap();
    let second = work.commit(&[("a.txt", b"two"), ("sub/deep/b.txt", b"b")]);
    git(&work.path, &["tag", "light"]);
    let third = work.commit(&[("a.txt", b"three")]);
    work.push(&["main", "v1", "light"]);
    [first, second, third]
}

#[tokio::test]
async fn a_branch_a_tag_or_a_commit_comes_without_what_was_before() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("model");
    let [first, second, third] = history(&work);
    let (top, config) = (server.top(), config(&server.top()));
    for (n, (revision, commit, expected)) in [
        (None, &third, "a.txt=three sub/deep/b.txt=b"),
        (Some("main"), &third, "a.txt=three sub/deep/b.txt=b"),
        (Some("refs/heads/main"), &third, "a.txt=three sub/deep/b.txt=b"),
        (Some("light"), &second, "a.txt=two sub/deep/b.txt=b"),
        (Some(second.as_str()), &second, "a.txt=two sub/deep/b.txt=b"),
        (Some(&second[..8]), &second, "a.txt=two sub/deep/b.txt=b"),
    ]
    .into_iter()
    .enumerate()
    {
        let pulled = pull(&config, &source(&work.url, revision, None), None, &top.join(n.to_string())).await.unwrap();
        assert_eq!(text(&contents(&pulled.path)), expected, "{revision:?}");
        let files: Vec<_> = pulled.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!((files.as_slice(), pulled.in_place), (["a.txt", "sub/deep/b.txt"].as_slice(), false));
        let pin = pulled.pin.unwrap();
        assert_eq!((&pin.version, pin.files, pin.bytes), (commit, 2, pulled.bytes));
        assert!(pulled.fetched > 0 && pulled.fetched < 10_000, "{revision:?}: {} bytes came", pulled.fetched);
    }
    let tag = pull(&config, &source(&work.url, Some("v1"), None), None, &top.join("v1")).await.unwrap();
    assert_eq!(tag.pin.unwrap().version, first, "the commit, not the tag's own object");
    assert!(contents(&tag.path)["old.bin"] == noise(7, 3 << 20), "other bytes arrived");
}

#[tokio::test]
async fn a_pinned_commit_comes_though_the_tag_moved_and_a_lost_one_is_named() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("model");
    let [_, second, _] = history(&work);
    let (top, config) = (server.top(), config(&server.top()));
    let light = source(&work.url, Some("light"), None);
    let pin = pull(&config, &light, None, &top.join("one")).await.unwrap().pin.unwrap();
    assert_eq!(pin.version, second);

    git(&work.path, &["tag", "--force", "light", "main"]);
    work.push(&["light"]);
    let again = pull(&config, &light, Some(&pin), &top.join("two")).await.unwrap();
    assert_eq!(text(&contents(&again.path)), "a.txt=two sub/deep/b.txt=b");
    assert_eq!(again.pin.as_ref(), Some(&pin));
    let now = pull(&config, &light, None, &top.join("three")).await.unwrap();
    assert_ne!(now.pin.as_ref(), Some(&pin));

    // Its history is written anew, and the server forgets what nothing leads to.
    git(&work.path, &["checkout", "--quiet", "--orphan", "fresh"]);
    let fresh = work.commit(&[("a.txt", b"fresh")]);
    work.push(&["fresh:main", ":light", ":v1"]);
    git(&work.bare, &["branch", "--delete", "--force", "fresh"]);
    git(&work.bare, &["reflog", "expire", "--expire=now", "--all"]);
    git(&work.bare, &["gc", "--quiet", "--prune=now"]);
    let lost = pull(&config, &light, Some(&pin), &top.join("four")).await.unwrap_err();
    assert_eq!(lost.class(), FailureClass::Fatal);
    insta::assert_snapshot!(lost.to_string().replace(&work.url, "URL").replace(&second, "COMMIT"));
    let other = Pin {
        files: 9,
        ..pull(&config, &source(&work.url, None, None), None, &top.join("five")).await.unwrap().pin.unwrap()
    };
    assert_eq!(other.version, fresh);
    let differs = pull(&config, &source(&work.url, None, None), Some(&other), &top.join("five")).await.unwrap_err();
    assert!(matches!(differs, StoreError::OtherVersion { .. }), "{differs}");
}

#[tokio::test]
async fn of_a_part_only_that_part_comes() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("mono");
    work.commit(&[
        ("huge.bin", &noise(3, 4 << 20)),
        ("code/run.py", b"run"),
        ("code/lib/x.py", b"x"),
        ("data/d", b"d"),
    ]);
    let (top, config) = (server.top(), config(&server.top()));
    let folder = pull(&config, &source(&work.url, None, Some("code")), None, &top.join("folder")).await.unwrap();
    assert_eq!(text(&contents(&folder.path)), "lib/x.py=x run.py=run");
    assert!(folder.fetched < 10_000, "{} bytes came", folder.fetched);
    let file = pull(&config, &source(&work.url, None, Some("code/lib/x.py")), None, &top.join("file")).await.unwrap();
    assert_eq!((fs::read(&file.path).unwrap(), file.files.len()), (b"x".to_vec(), 1));
    assert!(file.path.ends_with("x.py"));
    let again = pull(&config, &source(&work.url, None, Some("code/lib/x.py")), None, &top.join("file")).await.unwrap();
    assert_eq!((again.path, again.fetched), (file.path, 0));

    // A server that cannot leave anything out sends all of it; what is written is the same.
    git(&work.bare, &["config", "uploadpack.allowFilter", "false"]);
    let all = pull(&config, &source(&work.url, None, Some("code")), None, &top.join("all")).await.unwrap();
    assert!(all.fetched > 4 << 20, "{} bytes came", all.fetched);
    assert_eq!(text(&contents(&all.path)), "lib/x.py=x run.py=run");
}

#[tokio::test]
async fn links_modes_and_submodules() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("tree");
    let inner = server.repository("inner");
    inner.commit(&[("i", b"i")]);
    fill(
        &work.path,
        &[
            ("run.sh", b"#!/bin/sh\n"),
            ("v2/model", b"m"),
            (".gitattributes", b"*.txt text eol=crlf\n*.c filter=evil\n"),
        ],
    );
    fill(&work.path, &[("t.txt", b"a\nb\n")]);
    fs::set_permissions(work.path.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("v2", work.path.join("latest")).unwrap();
    std::os::unix::fs::symlink("../latest/model", work.path.join("v2/again")).unwrap();
    git(
        &work.path,
        &[
            "-c",
            "protocol.file.allow=always",
            "submodule",
            "--quiet",
            "add",
            inner.bare.to_str().unwrap(),
            "mods/inner",
        ],
    );
    work.commit_all();
    let (top, config) = (server.top(), config(&server.top()));
    let tree = pull(&config, &source(&work.url, None, None), None, &top.join("m")).await.unwrap();
    assert_eq!(fs::read_link(tree.path.join("latest")).unwrap(), Path::new("v2"));
    assert_eq!(fs::read(tree.path.join("v2/again")).unwrap(), b"m");
    assert_eq!(fs::read(tree.path.join("t.txt")).unwrap(), b"a\nb\n", "line ends are the commit's");
    let mode = |name: &str| fs::metadata(tree.path.join(name)).unwrap().permissions().mode() & 0o111 != 0;
    assert!(mode("run.sh") && !mode("t.txt"));
    assert!(!tree.path.join("mods").exists() && !tree.path.join(".git").exists());

    let mut said = String::new();
    for (n, target) in ["/etc/passwd", "../../secret", "v2/../../x"].into_iter().enumerate() {
        fs::remove_file(work.path.join("latest")).unwrap();
        std::os::unix::fs::symlink(target, work.path.join("latest")).unwrap();
        work.commit_all();
        let into = top.join(format!("out{n}"));
        let error = pull(&config, &source(&work.url, None, None), None, &into).await.unwrap_err();
        assert_eq!(error.class(), FailureClass::Fatal);
        said += &format!("{}\n", error.to_string().replace(&work.url, "URL"));
        assert!(contents(&into.join("views")).is_empty(), "files lie there");
    }
    insta::assert_snapshot!(said);
}

/// Commits a pointer in the place of a file.
fn point(work: &Work, files: &[(&str, &[u8])]) -> String {
    for (name, bytes) in files {
        fill(&work.path, &[(name, pointer(bytes).as_bytes())]);
    }
    work.commit_all()
}

#[tokio::test]
async fn large_files_come_from_lfs() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("large");
    let (weights, other) = (noise(1, 20 << 20), noise(2, 70_000));
    server.keep(&weights);
    server.keep(&other);
    fill(&work.path, &[("README", b"read me")]);
    point(
        &work,
        &[("m/weights.bin", &weights), ("m/again.bin", &weights), ("m/tool", &other), ("unpushed.bin", b"nowhere")],
    );
    fs::set_permissions(work.path.join("m/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    work.commit_all();
    let (top, config) = (server.top(), config(&server.top()));
    // Signed, with a leave that is worn out once, on a line that breaks.
    server.inner.signed.store(true, Ordering::SeqCst);
    server.inner.stale.store(1, Ordering::SeqCst);
    server.inner.breaks.store(2, Ordering::SeqCst);
    let (tell, told) = seen();
    let pulled =
        node(&config, &top.join("m")).pull(&source(&work.url, None, Some("m")), None, tell, unsaid()).await.unwrap();
    let there = contents(&pulled.path);
    assert!(there["weights.bin"] == weights && there["again.bin"] == weights && there["tool"] == other, "other bytes");
    assert_eq!(pulled.bytes, 2 * (20 << 20) + 70_000);
    assert_eq!(fs::metadata(pulled.path.join("tool")).unwrap().permissions().mode() & 0o111, 0o111);
    let last = *told.lock().unwrap().last().unwrap();
    assert!(last.done >= 20 << 20, "{last:?}");
    assert_eq!(server.inner.breaks.load(Ordering::SeqCst), 0);

    let missing = pull(&config, &source(&work.url, None, None), None, &top.join("all")).await.unwrap_err();
    assert_eq!(missing.class(), FailureClass::Fatal);
    insta::assert_snapshot!(missing.to_string().replace(&work.url, "URL"));
    // Another server would have to be asked: it is said where it was asked for instead.
    server.keep(b"nowhere");
    work.commit(&[(".lfsconfig", b"[lfs]\n\turl = https://elsewhere.example/lfs\n")]);
    pull(&config, &source(&work.url, None, None), None, &top.join("all")).await.unwrap();
    work.commit(&[(".lfsconfig", format!("[lfs]\n\turl = {}/own/info/lfs\n", server.url).as_bytes())]);
    server.seen();
    pull(&config, &source(&work.url, None, Some("README")), None, &top.join("readme")).await.unwrap();
    assert!(!server.seen().iter().any(|(_, path, _)| path.contains("lfs")), "nothing large is below that path");
    pull(&config, &source(&work.url, None, None), None, &top.join("own")).await.unwrap();
    assert!(server.seen().iter().any(|(_, path, _)| path == "/own/info/lfs/objects/batch"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_real_git_lfs_pushes_comes_back() {
    let Some(server) = Gits::start().await else { return };
    if git_lfs().is_none() {
        return skip("no `git-lfs` to be the fixture's other client");
    }
    let work = server.repository("real");
    git(&work.path, &["remote", "set-url", "origin", &work.url]);
    git(&work.path, &["lfs", "install", "--local"]);
    git(&work.path, &["lfs", "track", "*.bin"]);
    let weights = noise(4, 9 << 20);
    work.commit(&[("w.bin", &weights), ("small.txt", b"s")]);
    let pulled =
        pull(&config(&server.top()), &source(&work.url, None, None), None, &server.top().join("m")).await.unwrap();
    let there = contents(&pulled.path);
    assert!(there["w.bin"] == weights, "other bytes arrived");
    // And git itself gets the same from the fixture.
    let clone = server.top().join("clone");
    git(
        &server.top(),
        &[
            "-c",
            "filter.lfs.smudge=git-lfs smudge -- %f",
            "-c",
            "filter.lfs.process=git-lfs filter-process",
            "clone",
            "--quiet",
            &work.url,
            clone.to_str().unwrap(),
        ],
    );
    fs::remove_dir_all(clone.join(".git")).unwrap();
    assert!(contents(&clone) == there, "git has other files");
}

#[tokio::test]
async fn private_repositories() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("private");
    let large = noise(1, 5000);
    server.keep(&large);
    point(&work, &[("w.bin", &large)]);
    *server.inner.credentials.lock().unwrap() = Some("me:hunter2".into());
    let top = server.top();
    let account = |host: &str, token: &str| GitAccount {
        host: host.into(),
        username: Some("me".into()),
        token: Secret::new(token),
    };
    let with = |accounts: Vec<GitAccount>| StoreConfig { git: accounts, ..config(&top) };
    let main = source(&work.url, None, None);

    let right = with(vec![account("elsewhere.example", "hunter3"), account(&server.url, "hunter2")]);
    let pulled = pull(&right, &main, None, &top.join("m")).await.unwrap();
    assert!(contents(&pulled.path)["w.bin"] == large, "other bytes arrived");

    let mut said = String::new();
    let host = server.url.trim_start_matches("http://").to_owned();
    for accounts in [vec![], vec![account(&host, "hunter2")], vec![account(&server.url, "hunter4")]] {
        server.seen();
        let plain = accounts.iter().all(|a| !a.host.starts_with("http://"));
        let error = pull(&with(accounts), &main, None, &top.join("none")).await.unwrap_err();
        assert_eq!(error.class(), FailureClass::Retryable, "another node may have the token: {error}");
        assert_eq!(
            server.seen().iter().all(|(_, _, authorized)| !authorized),
            plain,
            "a token for https went over http"
        );
        said += &format!("{}\n", error.to_string().replace(&work.url, "URL"));
    }
    assert!(!said.contains("hunter"), "{said}");
    insta::assert_snapshot!(said);
}

#[tokio::test]
async fn what_is_said_when_git_does_not_give() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("model");
    history(&work);
    work.push(&["main:refs/heads/release-1", "main:refs/heads/release-2"]);
    let empty = server.repository("empty");
    let (top, config) = (server.top(), config(&server.top()));
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = format!("http://{gone}/a/b.git");
    let no_repository = format!("{}/nothing.git", server.url);
    let no_server = format!("{}/large/x", server.url);
    let mut said = String::new();
    for (source, class) in [
        (source(&no_repository, None, None), FailureClass::Fatal),
        (source(&no_server, None, None), FailureClass::Fatal),
        (source(&work.url, Some("relase-1"), None), FailureClass::Fatal),
        (source(&work.url, Some("zzzz"), None), FailureClass::Fatal),
        (source(&work.url, Some("abcdef0"), None), FailureClass::Fatal),
        (source(&work.url, Some(&"ab".repeat(20)), None), FailureClass::Fatal),
        (source(&work.url, None, Some("sub/deep/c.txt")), FailureClass::Fatal),
        (source(&work.url, None, Some("a.txt/b")), FailureClass::Fatal),
        (source(&empty.url, None, None), FailureClass::Fatal),
        (source(&unreachable, None, None), FailureClass::Retryable),
        (source("file:///etc", None, None), FailureClass::Fatal),
    ] {
        let error = pull(&config, &source, None, &top.join("none")).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        let shown = error.to_string().replace(&gone.to_string(), "GONE").replace(&server.url, "SERVER");
        said += &format!("{shown}\n");
    }
    insta::assert_snapshot!(said);
    // More than is free, and nothing that could be freed.
    let full = StoreConfig { reserve_bytes: u64::MAX / 2, ..config };
    let error = pull(&full, &source(&work.url, None, None), None, &top.join("full")).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    assert_eq!(error.class(), FailureClass::Retryable);
}

#[tokio::test]
async fn two_pulls_wait_for_one_another_and_a_dropped_one_is_taken_up() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("model");
    work.commit(&[("w.bin", &noise(5, 6 << 20))]);
    let (top, config) = (server.top(), config(&server.top()));
    let main = source(&work.url, None, None);
    // Dropped as the first bytes come.
    let (reached, mut bytes) = tokio::sync::mpsc::unbounded_channel();
    let tell = Arc::new(move |moved: mloc_exec::Moved| {
        // The case has seen enough after the first.
        reached.send(moved.done).ok();
    });
    let into = top.join("m");
    let dropped = node(&config, &into);
    tokio::select! {
        ended = dropped.pull(&main, None, tell, unsaid()) => panic!("it ended: {ended:?}"),
        some = bytes.recv() => assert!(some.is_some()),
    }
    let (one, two) = tokio::join!(pull(&config, &main, None, &into), pull(&config, &main, None, &into));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((&one.path, &one.files), (&two.path, &two.files));
    assert_eq!([one.fetched, two.fetched].iter().filter(|fetched| **fetched == 0).count(), 1, "both fetched it");
    assert!(contents(&one.path)["w.bin"] == noise(5, 6 << 20), "other bytes arrived");
}

#[tokio::test]
async fn gits_own_daemon() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("model");
    let [_, second, _] = history(&work);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("git://{}", listener.local_addr().unwrap());
    let root = work.bare.parent().unwrap().to_owned();
    let daemon = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = stream.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            let ends = (stream.try_clone().unwrap(), stream);
            let mut git = git_command(&root);
            git.args(["daemon", "--inetd", "--export-all", &format!("--base-path={}", root.display())]);
            let as_file = |end: std::net::TcpStream| Stdio::from(std::os::fd::OwnedFd::from(end));
            git.stdin(as_file(ends.0)).stdout(as_file(ends.1)).stderr(Stdio::null());
            let mut child = tokio::process::Command::from(git).kill_on_drop(true).spawn().unwrap();
            tokio::spawn(async move { child.wait().await });
        }
    });
    let (top, config) = (server.top(), config(&server.top()));
    for (n, revision) in [Some("light"), Some(second.as_str()), Some(&second[..7])].into_iter().enumerate() {
        let from = source(&format!("{base}/model.git"), revision, None);
        let pulled = pull(&config, &from, None, &top.join(n.to_string())).await.unwrap();
        assert_eq!(text(&contents(&pulled.path)), "a.txt=two sub/deep/b.txt=b");
    }
    let sub = source(&format!("{base}/model.git"), None, Some("sub"));
    assert_eq!(text(&contents(&pull(&config, &sub, None, &top.join("sub")).await.unwrap().path)), "deep/b.txt=b");
    let none =
        pull(&config, &source(&format!("{base}/none.git"), None, None), None, &top.join("none")).await.unwrap_err();
    assert_eq!(none.class(), FailureClass::Fatal, "{none}");
    daemon.abort();
}

/// A stand-in for the ssh program: runs the command here, with this folder's programs before others.
fn stand_in(folder: &Path, line: &str) -> String {
    fs::create_dir_all(folder).unwrap();
    // Options, then the host, then the words of the command.
    let words =
        "while :; do case \"$1\" in -o|-p) shift 2;; -*) shift;; *) break;; esac; done\nshift\nexec sh -c \"$*\"";
    let script = format!("#!/bin/sh\nPATH={}:$PATH\n{line}\n{words}\n", folder.display());
    let path = folder.join("ssh");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn over_ssh_also_with_servers_of_old() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("model");
    let [_, second, _] = history(&work);
    let large = noise(9, 4000);
    server.keep(&large);
    point(&work, &[("w.bin", &large)]);
    // No name leads to that commit any more, only a later commit.
    work.push(&[":light"]);
    let top = server.top();
    // What a server says of its large files over ssh, for the repository that was asked for.
    let folder = top.join("bin");
    fs::create_dir_all(&folder).unwrap();
    let authenticate = folder.join("git-lfs-authenticate");
    let href = format!("{}/model.git/info/lfs", server.url);
    let says = format!(
        "#!/bin/sh\n[ \"$1 $2\" = '{} download' ] && echo '{{\"href\":\"{href}\",\"header\":{{\"X-Leave\":\"yes\"}}}}'\n",
        work.bare.display()
    );
    fs::write(&authenticate, says).unwrap();
    fs::set_permissions(&authenticate, fs::Permissions::from_mode(0o755)).unwrap();
    let url = format!("ssh://git@host.example{}", work.bare.display());
    // With the protocol of today, and with a server that takes no environment: it speaks the one of old, which gives a
    // commit in the middle to nobody unless all of its history comes.
    for (n, line) in ["", "unset GIT_PROTOCOL"].into_iter().enumerate() {
        let config = StoreConfig { ssh: stand_in(&folder, line), ..config(&top) };
        let main = pull(&config, &source(&url, None, None), None, &top.join(format!("{n}-main"))).await.unwrap();
        assert!(contents(&main.path)["w.bin"] == large, "other bytes arrived");
        assert!(main.fetched < 20_000, "{} bytes came", main.fetched);
        let middle = source(&url, Some(&second), None);
        let middle = pull(&config, &middle, None, &top.join(format!("{n}-middle"))).await.unwrap();
        assert_eq!(text(&contents(&middle.path)), "a.txt=two sub/deep/b.txt=b");
        assert_eq!(middle.fetched > 3 << 20, n == 1, "{} bytes came", middle.fetched);
        let tag = source(&url, Some("v1"), None);
        let tag = pull(&config, &tag, None, &top.join(format!("{n}-tag"))).await.unwrap();
        assert!(contents(&tag.path).contains_key("old.bin"), "another commit arrived");
    }
    let config = StoreConfig { ssh: "/no/such/program".into(), ..config(&top) };
    let error = pull(&config, &source(&url, None, None), None, &top.join("none")).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Retryable, "{error}");
}
