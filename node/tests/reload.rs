//! node.yaml changes under a running node, as platforms change it.

mod support;

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::Value;
use support::{Daemon, signal, text, until};

/// A ConfigMap as a kubelet mounts it: `node.yaml` → `..data/node.yaml`, `..data` → the folder of the day.
struct ConfigMap {
    dir: PathBuf,
    day: u32,
}

impl ConfigMap {
    fn mount(dir: &Path, content: &str) -> Self {
        std::fs::create_dir(dir).unwrap();
        let mut map = Self { dir: dir.to_owned(), day: 0 };
        map.publish(content);
        symlink("..data/node.yaml", map.file()).unwrap();
        map
    }

    fn file(&self) -> PathBuf {
        self.dir.join("node.yaml")
    }

    /// All of it or nothing, as a kubelet does it.
    fn publish(&mut self, content: &str) {
        self.day += 1;
        let (today, before) = (format!("..2026_{}", self.day), format!("..2026_{}", self.day - 1));
        std::fs::create_dir(self.dir.join(&today)).unwrap();
        std::fs::write(self.dir.join(&today).join("node.yaml"), content).unwrap();
        symlink(&today, self.dir.join("..data_tmp")).unwrap();
        std::fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data")).unwrap();
        if self.day > 1 {
            std::fs::remove_dir_all(self.dir.join(before)).unwrap();
        }
    }
}

fn labels_and_features(node: &Daemon) -> String {
    let nodes: Value = serde_json::from_slice(&node.ask(&["nodes", "-o", "json"]).stdout).unwrap();
    format!("{} {}", nodes[0]["labels"], nodes[0]["features"])
}

const TASK: &str = "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: echo, owner: john-doe, project: p}
spec: {taskType: echo, resources: {hardware: {cpu: 100m}}, hyperparameters: {steps: 1}, secretsFrom: [HUB_TOKEN]}
";

#[test]
fn a_config_map_that_is_swapped_is_applied_as_far_as_it_can_be_and_a_broken_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut map = ConfigMap::mount(&dir.path().join("config"), "labels: {zone: a}\n");
    let file = map.file().display().to_string();
    // RUST_LOG would stand above the file's `log`.
    let mut node = Daemon::start(dir.path(), &["up"], &["--config", &file, "--name", "a"], &[]);
    assert!(labels_and_features(&node).contains("\"zone\":\"a\""));

    let secret = dir.path().join("hub-token");
    std::fs::write(&secret, "hunter2\n").unwrap();
    let good = format!(
        "labels: {{zone: b}}\nsecrets: {{HUB_TOKEN: {}}}\nvolumes: {{models: {}}}\nlog: warn,mloc=debug\n\
         timing: {{leaseMs: 50000}}\nrole: {{vote: never}}\n",
        secret.display(),
        dir.path().display()
    );
    map.publish(&good);
    until("what can be is applied", || {
        let now = labels_and_features(&node);
        let all = ["\"zone\":\"b\"", "secret:HUB_TOKEN", "volume:models"];
        all.iter().all(|part| now.contains(part)).then_some(())
    });
    let said = node.read("err");
    for key in ["timing.leaseMs", "role.vote"] {
        assert!(said.lines().any(|l| l.contains(key) && l.contains("needs a restart")), "{key}: {said}");
    }
    assert!(!said.lines().any(|l| l.contains("labels.zone") && l.contains("needs a restart")), "{said}");
    assert!(node.get("/metrics").contains("\nmloc_config_waiting 2\n"), "{}", node.get("/metrics"));
    // A task may use the secret at once.
    let task = dir.path().join("task.yaml");
    std::fs::write(&task, TASK).unwrap();
    let done = node.ask(&["submit", "--wait", task.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(0), "{}{}", text(&done.stdout), text(&done.stderr));

    // Each of these is refused with its problem, and nothing of it is taken.
    for (broken, problem) in [
        ("labels: {zone: c}\nseedz: []\n", "seedz"),
        ("labels: {zone: c}\nsecrets: {HUB_TOKEN: /no/such}\n", "/no/such"),
        ("labels: {zone: c}\nlog: mloc=loud\n", "expected a level"),
    ] {
        map.publish(broken);
        until("it is refused", || {
            node.lives();
            let said = node.read("err");
            said.lines().any(|l| l.contains("refused") && l.contains(problem)).then_some(())
        });
        assert!(labels_and_features(&node).contains("\"zone\":\"b\""), "{}", labels_and_features(&node));
        assert!(node.get("/metrics").contains("\nmloc_config_broken 1\n"));
    }
    map.publish(&good);
    until("it is whole again", || node.get("/metrics").contains("\nmloc_config_broken 0\n").then_some(()));
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn a_file_that_is_renamed_over_or_edited_is_seen_and_sighup_asks_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.yaml");
    std::fs::write(&file, "labels: {zone: a}\n").unwrap();
    let path = file.display().to_string();
    // The flag stands above the file, whatever comes to be in it.
    let node = Daemon::start(dir.path(), &["up"], &["--config", &path, "--name", "flag"], &[]);
    let zone = |zone: &str| labels_and_features(&node).contains(&format!("\"zone\":\"{zone}\"")).then_some(());
    // A Nomad template.
    let draft = dir.path().join("draft");
    std::fs::write(&draft, "labels: {zone: b}\nname: file\n").unwrap();
    std::fs::rename(&draft, &file).unwrap();
    until("a rename is seen", || zone("b"));
    std::fs::write(&file, "labels: {zone: c}\n").unwrap();
    until("an edit is seen", || zone("c"));
    assert!(!node.read("err").contains("needs a restart"), "{}", node.read("err"));
    // A signal asks even when nothing has changed.
    let times = || node.read("err").matches("was read again").count();
    let before = times();
    signal(&node.child, "-HUP");
    until("the signal is heard", || (times() > before).then_some(()));
    assert_eq!(node.stop(), Some(0));
}
