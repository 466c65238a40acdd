//! `mloc restore`: a data directory with which a mesh is founded anew, and what its people do next.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use mloc_core::{ledger::contents::Contents, time::Millis};
use mloc_mesh::restore::{RestoreError, RestoreSettings, Restored, restore as lay_down};

use super::{
    backup::{checked, read},
    up::{default_data_dir, given_token},
};
use crate::{
    cli::RestoreArgs,
    client::Refusal,
    node::{BadConfig, host_name},
    show::say,
};

/// `mloc restore`.
pub fn restore(args: RestoreArgs) -> Result<(), Refusal> {
    let (place, bytes) = read(&args.file)?;
    let backup = checked(&place, &bytes)?;
    let dir = args.data_dir.unwrap_or_else(default_data_dir);
    let settings = RestoreSettings {
        data_dir: dir.clone(),
        name: args.name.unwrap_or_else(host_name),
        token: given_token(args.token_file.as_deref()).context(BadConfig)?,
        at: now(),
    };
    let restored = lay_down(&backup, settings).map_err(|error| {
        let code = match &error {
            RestoreError::NotEmpty { .. } | RestoreError::SameMesh(_) => 2,
            RestoreError::Io { .. } => 1,
        };
        Refusal::new(code, error.to_string())
    })?;
    let contents = Contents::of(&backup.ledger, backup.head.as_of);
    if let Some(broken) = &contents.broken {
        eprintln!("warning: this ledger is in a state that no ledger should come to: {broken}");
    }
    let (tasks, users) = (contents.tasks.values().sum::<u64>(), contents.users.len());
    let head = &backup.head;
    say!("restored {tasks} tasks of {users} users from {place}: mesh {} as of {}", head.mesh, head.as_of);
    say!("mesh     {} (new: nodes of the old one are never taken for its own)", restored.mesh);
    say!(
        "requeued {} attempts ran then; the next ones are numbered from {}",
        restored.requeued,
        restored.first_attempt
    );
    say!("{}", next_steps(&restored, &dir.display().to_string()));
    Ok(())
}

fn next_steps(restored: &Restored, dir: &str) -> String {
    let token = restored.token_file.display();
    format!(
        "next
  1. Be sure that nothing of the old mesh runs any more: stop mloc on its nodes (systemctl stop mloc). A node that can't
     be reached publishes nothing once it has been without a leader for a lease (60 s unless timing.leaseMs says more).
  2. Start this node alone, with its seeds left as they are: mloc up --data-dir {dir}
     Where the platform hands out the join token (a secret, tokenFile, MLOC_JOIN_TOKEN), put the new one there first: it
     is in {token}
  3. When `mloc mesh` answers here, bring the others in one after the other. On each: move its old data directory away
     (it belongs to the old mesh, and is refused), put the new token in the place of the old one, and start it as one that
     joins: mloc join HOST:PORT of this node. Voters are promoted by themselves.
     A node with bootstrapExpect joins too, but only while this node can be reached: not before.
  4. Give people new REST tokens: those of the old mesh are void. mloc token USER --data-dir {dir}
  5. Look through `mloc tasks`. What was submitted after the backup is not known here: it has to be submitted again. Old
     data directories hold results of tasks without a destination, and checkpoints: keep them until nothing is missed."
    )
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
