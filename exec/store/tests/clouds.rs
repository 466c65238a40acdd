//! Sources, destinations and checkpoints at Google and Azure, against real servers where such can be had, and against
//! what the real ones are known to say where they cannot.

mod support;

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use mloc_core::{ledger::entry::FailureClass, task::spec::Location};
use mloc_exec::checkpoint::Retention;
use mloc_store::{MANIFEST, Secret, Store, StoreConfig, StoreError};
use support::{
    clouds::{Azurite, Gcs, at_gcs},
    line::Line,
    moto,
    web::{Reply, Web},
    *,
};

struct Bench {
    store: Store,
    top: PathBuf,
    // Keeps the folder.
    _dir: tempfile::TempDir,
}

fn bench(with: impl Fn(StoreConfig) -> StoreConfig) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let store = Store::new(with(config(&top))).unwrap();
    Bench { store, top, _dir: dir }
}

/// What all destinations do: a result and checkpoints go there and come back.
async fn there_and_back(store: &Store, top: &std::path::Path, to: impl Fn(&str) -> Location, large: usize) {
    let run = top.join("run");
    fill(&run, &[("adapter.bin", &noise(3, large)), ("logs/log.jsonl", b"{}\n")]);
    let files = outputs(&["adapter.bin", "logs/log.jsonl"]);
    let out = to("out/one");
    let publish = |task: &'static str, number| {
        let (store, out, run, files) = (store.clone(), out.clone(), run.clone(), files.clone());
        async move { store.publish(&attempt(task, number), Some(&out), &run, &files, None, unseen()).await }
    };
    let won = publish("task-a", 1).await.unwrap();
    assert_eq!(publish("task-a", 2).await.unwrap(), won, "a retry adopts");
    let lost = publish("task-b", 1).await.unwrap_err();
    assert!(matches!(&lost, StoreError::Taken { task, .. } if task == "task-a"), "{lost}");
    let pulled = pull(store, &out, None).await.unwrap();
    let mut back = contents(&pulled.path);
    back.remove(MANIFEST);
    assert!(back == contents(&run), "other bytes came back");
    let again = pull(store, &out, pulled.pin.as_ref()).await.unwrap();
    assert_eq!(again.fetched, 0);
    let one = pull(store, &to("out/one/logs/log.jsonl"), None).await.unwrap();
    assert_eq!(std::fs::read(one.path).unwrap(), b"{}\n");

    let (a, ckpt) = (attempt("task-a", 1), to("ckpt"));
    for step in [5, 10, 15] {
        fill(&run, &[("model.bin", &noise(step, 100_000))]);
        store.push_checkpoint(&a, &ckpt, step, &run, Retention::newest(2), unseen()).await.unwrap();
    }
    assert_eq!(store.list_checkpoints(&a, &ckpt).await.unwrap(), [10, 15]);
    let fetched = store.fetch_checkpoint(&a, &ckpt, &top.join("c"), unseen()).await.unwrap().unwrap();
    assert_eq!(fetched.checkpoint.step, 15);
    assert!(contents(&top.join("c")) == contents(&run), "other bytes came back");
}

/// The emulator takes no multipart uploads, so the file is one that goes in one request.
#[tokio::test]
async fn google_there_and_back() {
    let Some(gcs) = Gcs::start() else { return };
    let Bench { store, top, _dir, .. } = bench(Gcs::config);
    there_and_back(&store, &top, |path| gcs.at(path), 3 << 20).await;
}

#[tokio::test]
async fn azure_there_and_back() {
    let Some(azurite) = Azurite::start() else { return };
    let Bench { store, top, _dir, .. } = bench(Azurite::config);
    there_and_back(&store, &top, |path| azurite.at("mloc-test", path), 20 << 20).await;
    assert!(azurite.keys().await.contains(&format!("out/one/{MANIFEST}")));
}

/// Two tasks at once: one result, and the other is told whose it is. Azurite holds the precondition that decides it.
#[tokio::test]
async fn azure_publishes_once() {
    let Some(azurite) = Azurite::start() else { return };
    let Bench { store, top, _dir, .. } = bench(Azurite::config);
    let run = top.join("run");
    fill(&run, &[("a", b"abc")]);
    for round in 0..5 {
        let to = azurite.at("mloc-test", &format!("race/{round}"));
        let publish = |task: &'static str| {
            let (store, to, run) = (&store, &to, &run);
            async move { store.publish(&attempt(task, 1), Some(to), run, &outputs(&["a"]), None, unseen()).await }
        };
        let (a, b) = tokio::join!(publish("task-a"), publish("task-b"));
        let (won, lost) = if a.is_ok() { (a, b) } else { (b, a) };
        won.unwrap();
        assert!(matches!(lost, Err(StoreError::Taken { .. })), "{lost:?}");
    }
}

#[tokio::test]
async fn azure_over_a_line_that_breaks() {
    let Some(azurite) = Azurite::start() else { return };
    let Bench { store, top, _dir, .. } = bench(Azurite::config);
    let run = top.join("run");
    let bytes = noise(3, 30 << 20);
    fill(&run, &[("w.bin", &bytes)]);
    let to = azurite.at("mloc-private", "m");
    store.publish(&attempt("t", 1), Some(&to), &run, &outputs(&["w.bin"]), None, unseen()).await.unwrap();
    let line = Line::to(&azurite.0.endpoint).await;
    line.breaks_after(3 << 20);
    let Location::Azblob { container, account, .. } = to else { unreachable!() };
    let endpoint = Some(format!("{}/devstoreaccount1", line.endpoint));
    let source = Location::Azblob { container, path: "m/w.bin".into(), account, endpoint };
    let pulled = pull(&store, &source, None).await.unwrap();
    assert!(std::fs::read(pulled.path).unwrap() == bytes, "other bytes arrived");
    let over = line.down() as f64 / bytes.len() as f64;
    assert!(over <= 1.05, "{over:.3} × the object came down");
}

/// An object that is replaced under a reader's hands: Azurite holds If-Match.
#[tokio::test]
async fn azure_objects_are_held_by_their_etag() {
    let Some(azurite) = Azurite::start() else { return };
    let Bench { store, top, _dir, .. } = bench(Azurite::config);
    let (a, to) = (attempt("t", 1), azurite.at("mloc-test", "m"));
    fill(&top.join("old"), &[("w.bin", &noise(1, 40 << 20))]);
    fill(&top.join("new"), &[("w.bin", &noise(2, 30 << 20))]);
    store.push_checkpoint(&a, &to, 1, &top.join("old"), Retention::newest(0), unseen()).await.unwrap();
    let line = Line::to(&azurite.0.endpoint).await;
    line.pause_at(10 << 20);
    let Location::Azblob { container, account, .. } = to.clone() else { unreachable!() };
    let endpoint = Some(format!("{}/devstoreaccount1", line.endpoint));
    let path = "m/t/0/step-0000000001/w.bin".into();
    let source = Location::Azblob { container, path, account, endpoint };
    let change = async {
        line.paused().await;
        store.push_checkpoint(&a, &to, 1, &top.join("new"), Retention::newest(0), unseen()).await.unwrap();
        line.go_on();
    };
    let (pulled, ()) = tokio::join!(pull(&store, &source, None), change);
    assert!(std::fs::read(pulled.unwrap().path).unwrap() == noise(2, 30 << 20), "old bytes, or a mixture");
}

/// What Google holds and the emulator does not: a manifest is placed with `ifGenerationMatch=0`, and objects are read
/// with the generation that was listed.
#[tokio::test]
async fn google_is_asked_to_hold_generations() {
    let manifest = serde_json::json!({"format": 1, "attempt": attempt("task-z", 1), "files": [], "summary": {}});
    let theirs = manifest.to_string().into_bytes();
    let placed = AtomicBool::new(false);
    let web = Web::start(move |asked| {
        let object = |name: &str, size: usize| {
            format!(r#"{{"kind":"storage#object","name":"{name}","bucket":"mloc-test","generation":"17","metageneration":"1","etag":"CBE=","md5Hash":"","contentType":"","size":"{size}","updated":"2026-01-01T00:00:00Z"}}"#)
        };
        let not_found = || Reply::new(404, r#"{"error":{"code":404,"message":"No such object","errors":[{"domain":"global","reason":"notFound","message":"No such object","location":"","locationType":""}]}}"#);
        if asked.method == "POST" && asked.path.contains("ifGenerationMatch=0") {
            placed.store(true, Ordering::SeqCst);
            return Reply::new(412, r#"{"error":{"code":412,"message":"At least one of the pre-conditions you specified did not hold.","errors":[{"domain":"global","reason":"conditionNotMet","message":"x","location":"If-Match","locationType":"header"}]}}"#);
        }
        if asked.method == "POST" {
            return Reply::new(200, object("x", asked.body.len()));
        }
        let media = asked.path.contains("alt=media");
        if asked.path.contains(MANIFEST) {
            return match (placed.load(Ordering::SeqCst), media) {
                (false, _) => not_found(),
                (true, true) => Reply::new(200, theirs.clone()),
                (true, false) => Reply::new(200, object("out/mloc-manifest.json", theirs.len())),
            };
        }
        if asked.path.starts_with("/storage/v1/b/mloc-test/o?") {
            return Reply::new(200, format!(r#"{{"kind":"storage#objects","items":[{}]}}"#, object("m/a", 3)));
        }
        match media {
            true => Reply::file(asked, b"abc", "\"x\"").with("x-goog-generation", "17"),
            false => Reply::new(200, object("m/a", 3)),
        }
    })
    .await;
    let Bench { store, top, _dir, .. } = bench(Gcs::config);
    fill(&top.join("run"), &[("a", b"abc")]);
    let (to, run, files) = (at_gcs(&web.endpoint, "out"), top.join("run"), outputs(&["a"]));
    let lost = store.publish(&attempt("t", 1), Some(&to), &run, &files, None, unseen()).await.unwrap_err();
    assert!(matches!(&lost, StoreError::Taken { task, .. } if task == "task-z"), "{lost}");

    let pulled = pull(&store, &at_gcs(&web.endpoint, "m"), None).await.unwrap();
    assert_eq!(pulled.pin.unwrap().version, "17");
    let reads: Vec<_> =
        web.asked().into_iter().filter(|a| a.path.contains("/o/m%2Fa") && a.path.contains("alt=media")).collect();
    assert!(!reads.is_empty() && reads.iter().all(|read| read.path.contains("ifGenerationMatch=17")), "{reads:?}");
    assert!(web.asked().iter().all(|asked| asked.header("authorization") == "Bearer ya29.hunter2"));
}

#[tokio::test]
async fn what_is_said_when_a_cloud_does_not_give() {
    let said = Mutex::new(String::new());
    let say = |what: &str, error: StoreError, class: FailureClass, endpoint: &str| {
        assert_eq!(error.class(), class, "{what}: {error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("Eby8vdM02x"), "{shown}");
        let text = error.to_string().replace(endpoint, "http://HOST:PORT");
        *said.lock().unwrap() += &format!("# {what}\n{text}\n\n");
    };
    let (fatal, retryable) = (FailureClass::Fatal, FailureClass::Retryable);
    let refused = |store: &Store, from: Location| {
        let store = store.clone();
        async move { pull(&store, &from, None).await.unwrap_err() }
    };

    let Bench { store: google, _dir, .. } = bench(Gcs::config);
    let of_google = |code: u16, reason: &'static str, message: &'static str| {
        Web::start(move |_| {
            let error = format!(
                r#"{{"error":{{"code":{code},"message":"{message}","errors":[{{"domain":"global","reason":"{reason}","message":"{message}","location":"","locationType":""}}]}}}}"#
            );
            Reply::new(code, error)
        })
    };
    for (what, code, reason, message, class) in [
        ("google: an expired token", 401, "authError", "Invalid Credentials", retryable),
        (
            "google: nobody",
            401,
            "required",
            "Anonymous caller does not have storage.objects.list access to the Google Cloud Storage bucket.",
            retryable,
        ),
        (
            "google: a 403",
            403,
            "forbidden",
            "mloc@lab.iam.gserviceaccount.com does not have storage.objects.list access to the Google Cloud Storage bucket.",
            fatal,
        ),
        ("google: no such bucket", 404, "notFound", "The specified bucket does not exist.", fatal),
        ("google: down", 503, "backendError", "Backend Error", retryable),
    ] {
        let web = of_google(code, reason, message).await;
        say(what, refused(&google, at_gcs(&web.endpoint, "m")).await, class, &web.endpoint);
    }

    let of_s3 = |status: u16, code: &'static str, message: &'static str| {
        Web::start(move |_| {
            let error = format!(
                "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message><Resource/><RequestId>1</RequestId></Error>"
            );
            Reply::new(status, error)
        })
    };
    let Bench { store: s3, _dir, .. } = bench(moto::with_credentials);
    for (what, status, code, message, class) in [
        ("s3: an expired token", 400, "ExpiredToken", "The provided token has expired.", retryable),
        (
            "s3: a wrong secret",
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match.",
            retryable,
        ),
        ("s3: a clock that is wrong", 403, "RequestTimeTooSkewed", "The difference is too large.", retryable),
        ("s3: a 403", 403, "AccessDenied", "Access Denied", fatal),
        ("s3: no such bucket", 404, "NoSuchBucket", "The specified bucket does not exist", fatal),
        ("s3: too fast", 503, "SlowDown", "Please reduce your request rate.", retryable),
    ] {
        let web = of_s3(status, code, message).await;
        say(what, refused(&s3, moto::at(&web.endpoint, "m")).await, class, &web.endpoint);
    }
    let page = Web::start(|_| Reply::new(502, "<html><body>Bad gateway</body></html>")).await;
    say("s3: a page for browsers", refused(&s3, moto::at(&page.endpoint, "m")).await, retryable, &page.endpoint);

    if let Some(azurite) = Azurite::start() {
        let endpoint = azurite.0.endpoint.clone();
        let Bench { store: azure, _dir, .. } = bench(Azurite::config);
        say("azure: no such object", refused(&azure, azurite.at("mloc-test", "none")).await, fatal, &endpoint);
        say("azure: no such container", refused(&azure, azurite.at("nobodys", "m")).await, fatal, &endpoint);
        let Bench { store: wrong, _dir, .. } = bench(|mut config| {
            config.azblob.account_key = Some(Secret::new("aHVudGVyMg=="));
            config
        });
        say("azure: a wrong key", refused(&wrong, azurite.at("mloc-private", "m")).await, retryable, &endpoint);
        let Bench { store: expired, _dir, .. } = bench(|mut config| {
            config.azblob.sas_token =
                Some(Secret::new("sv=2021-08-06&ss=b&srt=sco&sp=rl&se=2020-01-01T00:00:00Z&sig=aHVudGVyMg%3D%3D"));
            config
        });
        say("azure: an expired token", refused(&expired, azurite.at("mloc-private", "m")).await, retryable, &endpoint);
        let mut nowhere = azurite.at("mloc-test", "m");
        if let Location::Azblob { account, endpoint, .. } = &mut nowhere {
            (*account, *endpoint) = (None, None);
        }
        say("azure: no account is named", refused(&azure, nowhere).await, fatal, &endpoint);
        insta::assert_snapshot!(said.into_inner().unwrap());
    }
}
