//! What a task's sources come to once the tasks whose artifacts they are have completed.

use super::state::{AttemptEnd, AttemptState, Ledger, Task, TaskEnd};
use crate::task::{TaskSpec, spec::Location};

impl Ledger {
    /// The task as a worker is to run it: in place of `type: task` stands where the artifacts lie. A source whose task
    /// has not completed stays as it is.
    pub fn resolved(&self, task: &Task) -> TaskSpec {
        let mut spec = task.spec.clone();
        for source in spec.sources_mut() {
            if let Location::Task { identifier, path } = source
                && let Some(found) = self.artifacts_of(task, identifier, path.as_deref())
            {
                *source = found;
            }
        }
        spec
    }

    fn artifacts_of(&self, task: &Task, identifier: &str, path: Option<&str>) -> Option<Location> {
        let (_, made) = self.meant(task, identifier)?;
        let Some(TaskEnd::Completed { .. }) = made.ended else { return None };
        if let Some(destination) = &made.spec.output.destination {
            return Some(destination.below(path));
        }
        let finished = |state: &AttemptState| matches!(state, AttemptState::Ended { how: AttemptEnd::Finished, .. });
        let attempt = made.replicas.iter().flat_map(|r| &r.attempts).rfind(|attempt| finished(&attempt.state))?;
        let path = path.map(str::to_owned);
        Some(Location::Kept { node: attempt.node.clone(), attempt: attempt.id.clone(), path })
    }
}
