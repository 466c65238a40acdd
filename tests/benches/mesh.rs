//! Figures of a mesh of three release builds on one machine, with the product's own durations (profile `lan`):
//!
//! ```sh
//! cargo build --release && cargo bench -p mloc-tests --bench mesh
//! ```
//!
//! - submit → 202 and submit → RUNNING, through a follower
//! - SIGKILL of the leader → the next 202
//! - an idle daemon's memory and processor time
//! - elections while each of the three trains
//!
//! Each figure stands beside what bounds it: a durable commit of three voters, the election timeout, one core.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use mloc_tests::{Sandbox, mloc, root, run_to_end};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Only what a bench can't wait for: promotion after 2 s instead of a minute of uptime.
const TIMING: &str = "timing: {voterStableMs: 2000}\n";
/// The longest election timeout of the profile, in seconds.
const ELECTION_MAX_S: f64 = 1.6;
const SUBMISSIONS: usize = 40;
const FAILOVERS: usize = 5;
const IDLE: Duration = Duration::from_secs(30);
const UNDER_LOAD: Duration = Duration::from_secs(45);

const ECHO: &str = "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: echo, owner: bench, project: bench}
spec:
  taskType: echo
  resources: {hardware: {cpu: 10m}}
  hyperparameters: {steps: 1, step_ms: 400}
";

fn main() -> anyhow::Result<()> {
    // `cargo test --benches` starts benches too; they measure nothing there.
    if !std::env::args().any(|a| a == "--bench") {
        return Ok(());
    }
    ensure!(!cfg!(debug_assertions), "figures of a debug build say nothing: cargo bench");
    println!("{} on {} cores", mloc().display(), thread::available_parallelism()?);
    let mut sandbox = three()?;
    idle(&sandbox)?;
    submissions(&mut sandbox)?;
    under_load(&mut sandbox)?;
    drop(sandbox);
    failovers()
}

fn three() -> anyhow::Result<Sandbox> {
    let mut sandbox = Sandbox::with_timing(&[], TIMING)?;
    let volume = root().join("configs/quickstart");
    let config = format!("hardware: {{cpu: '1', memory: 4GiB}}\nvolumes: {{quickstart: {}}}", volume.display());
    sandbox.mesh(&["a", "b", "c"], &config, 3)?;
    Ok(sandbox)
}

fn median(mut of: Vec<f64>) -> (f64, f64, f64) {
    of.sort_by(f64::total_cmp);
    (of[0], of[of.len() / 2], of[of.len() - 1])
}

fn figure(what: &str, unit: &str, of: Vec<f64>) -> f64 {
    let runs = of.len();
    let (least, middle, most) = median(of);
    println!("{what:<48} {middle:>8.1} {unit} (least {least:.1}, most {most:.1}, {runs} runs)");
    middle
}

/// `GET`/`POST` over one fresh connection: no start of a client process in the figure.
fn http(address: &str, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/yaml\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).context("a status")?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((status, body))
}

fn id_of(accepted: &str) -> anyhow::Result<String> {
    // The body may be chunked: the id is found without a parser.
    let at = accepted.find("task-").context("an id")?;
    Ok(accepted[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect())
}

fn submissions(sandbox: &mut Sandbox) -> anyhow::Result<()> {
    let leader = sandbox.leader(0)?;
    let follower = (0..3).find(|i| *i != leader).context("a follower")?;
    let rest = sandbox.rest(follower)?;
    let (mut accepted, mut running) = (Vec::new(), Vec::new());
    for _ in 0..SUBMISSIONS {
        let began = Instant::now();
        let (status, body) = http(&rest, "POST", "/api/v1/tasks", ECHO)?;
        ensure!(status == 202, "{status}: {body}");
        accepted.push(began.elapsed().as_secs_f64() * 1e3);
        let path = format!("/api/v1/tasks/{}", id_of(&body)?);
        loop {
            let (_, task) = http(&rest, "GET", &path, "")?;
            if task.contains("\"state\":\"RUNNING\"") || task.contains("\"state\":\"COMPLETED\"") {
                break;
            }
            ensure!(!task.contains("\"state\":\"FAILED\""), "{task}");
        }
        running.push(began.elapsed().as_secs_f64() * 1e3);
        sandbox.until("it has ended", |_| Ok(http(&rest, "GET", &path, "")?.1.contains("\"state\":\"COMPLETED\"")))?;
    }
    let commit = fsync_ms(sandbox)?;
    let to_202 = figure("submit → 202 through a follower", "ms", accepted);
    println!("{:<48} {:>8.1} × one fsync of this disk ({commit:.1} ms)", "", to_202 / commit);
    let to_running = figure("submit → RUNNING through a follower", "ms", running);
    println!("{:<48} {:>8.1} × submit → 202", "", to_running / to_202);
    Ok(())
}

/// What bounds a commit: one small durable write on the disk the ledgers lie on.
fn fsync_ms(sandbox: &Sandbox) -> anyhow::Result<f64> {
    use std::io::Write;
    let mut file = fs::File::create(sandbox.dir.path().join("fsync"))?;
    let mut each = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        file.write_all(&[0; 512])?;
        file.sync_data()?;
        each.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(each).1)
}

fn failovers() -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..FAILOVERS {
        let mut sandbox = three()?;
        let leader = sandbox.leader(0)?;
        let follower = (0..3).find(|i| *i != leader).context("a follower")?;
        let rest = sandbox.rest(follower)?;
        sandbox.kill(leader)?;
        let began = Instant::now();
        loop {
            let (status, _) = http(&rest, "POST", "/api/v1/tasks", ECHO)?;
            if status == 202 {
                break;
            }
        }
        times.push(began.elapsed().as_secs_f64());
    }
    let middle = figure("SIGKILL of the leader → the next 202", "s", times);
    println!("{:<48} {:>8.1} × the longest election timeout ({ELECTION_MAX_S} s)", "", middle / ELECTION_MAX_S);
    Ok(())
}

/// Resident bytes, and seconds of processor time so far.
fn spent(pid: Pid) -> anyhow::Result<(u64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find(|l| l.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: u64 = resident.split_whitespace().nth(1).context("a number")?.parse()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = after_name[11].parse::<u64>()? + after_name[12].parse::<u64>()?;
    let a_second = sysconf(SysconfVar::CLK_TCK)?.context("ticks a second")?;
    Ok((kib * 1024, ticks as f64 / a_second as f64))
}

fn idle(sandbox: &Sandbox) -> anyhow::Result<()> {
    // The matmul probe of the start is over by then.
    thread::sleep(Duration::from_secs(5));
    let leader = sandbox.leader(0)?;
    let before: Vec<_> = (0..3).map(|i| spent(sandbox.pid(i)?)).collect::<anyhow::Result<_>>()?;
    thread::sleep(IDLE);
    for (index, (_, earlier)) in before.into_iter().enumerate() {
        let (bytes, now) = spent(sandbox.pid(index)?)?;
        let who = if index == leader { "leader" } else { "follower" };
        println!(
            "{:<48} {:>8.1} MiB resident, {:.2} % of a core",
            format!("idle daemon of three ({who})"),
            bytes as f64 / 1048576.0,
            (now - earlier) / IDLE.as_secs_f64() * 100.0
        );
    }
    Ok(())
}

/// A fine-tune on each of the three nodes at once: more threads that compute than this machine's two cores.
fn under_load(sandbox: &mut Sandbox) -> anyhow::Result<()> {
    let text = fs::read_to_string(root().join("configs/quickstart.yaml"))?;
    let endless = text.replace("max_steps: 175", "max_steps: 100000").replace("cpu: 1500m", "cpu: '1'");
    ensure!(endless.contains("100000"), "the quickstart's steps are another number now");
    let leader = sandbox.leader(0)?;
    let term = |sandbox: &Sandbox| -> anyhow::Result<u64> {
        sandbox.run(leader, &["mesh", "-o", "json"])?.json()?["term"].as_u64().context("a term")
    };
    let before = term(sandbox)?;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(sandbox.submit(leader, &endless)?);
    }
    for id in &ids {
        sandbox.until_state(leader, id, &["RUNNING"])?;
    }
    let mut slowest = Duration::ZERO;
    let until = Instant::now() + UNDER_LOAD;
    let rest = sandbox.rest(leader)?;
    while Instant::now() < until {
        let began = Instant::now();
        http(&rest, "GET", "/api/v1/mesh", "")?;
        slowest = slowest.max(began.elapsed());
        thread::sleep(Duration::from_millis(200));
    }
    let elections = term(sandbox)? - before;
    println!(
        "{:<48} {elections:>8} elections in {} s; slowest linearizable read {:.0} ms",
        "three nodes, a fine-tune on each",
        UNDER_LOAD.as_secs(),
        slowest.as_secs_f64() * 1e3
    );
    for id in &ids {
        let rest = sandbox.rest(leader)?;
        let cancelled = run_to_end(Command::new(mloc()).args(["cancel", id]).env("MLOC_NODE", rest))?;
        ensure!(cancelled.code == 0, "{}", cancelled.err);
    }
    Ok(())
}
