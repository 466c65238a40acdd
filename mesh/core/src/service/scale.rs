//! How many replicas there should be: by the requests under way, by nobody asking for long.

use std::collections::BTreeMap;

use crate::{
    id::{AttemptId, TaskId},
    ledger::{
        Entry, Ledger,
        state::{Attempt, Task},
    },
    service::plan::wanted_of,
    task::spec::Service,
    time::Millis,
    wire::{AttemptProgress, Serving},
};

/// Since when the load of a task asks for more, or for fewer; soft state of the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    since: BTreeMap<TaskId, Asks>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asks {
    more: bool,
    since: Millis,
}

/// The load of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    /// Requests under way at its replicas.
    under_way: u32,
    /// For so long none had been, of the replica that was asked last; `None` while a ready one has not said.
    idle_ms: Option<u64>,
}

impl Watch {
    /// Steps of every service whose load has asked for them long enough.
    pub fn scale(
        &mut self,
        ledger: &Ledger,
        progress: &BTreeMap<AttemptId, AttemptProgress>,
        now: Millis,
    ) -> Vec<Entry> {
        self.since.retain(|id, _| ledger.tasks.get(id).is_some_and(|task| task.ended.is_none()));
        let current = ledger.tasks.iter().filter(|(_, task)| task.ended.is_none());
        let current = current.filter_map(|(id, task)| Some((id, task, task.spec.service.as_ref()?)));
        let mut entries = Vec::new();
        for (id, task, service) in current {
            // Only one of its name is asked; older ones are on their way out.
            if ledger.current_of(&service.served_name).is_none_or(|(newest, _)| newest != id) {
                continue;
            }
            let load = load(ledger, &service.served_name, progress);
            if let Some((replicas, why)) = self.decide(id, task, service, load, now) {
                entries.push(Entry::Scaled { task: id.clone(), replicas, why, at: now });
            }
        }
        entries
    }

    fn decide(
        &mut self,
        id: &TaskId,
        task: &Task,
        service: &Service,
        load: Load,
        now: Millis,
    ) -> Option<(u32, String)> {
        let desired = task.desired();
        // What sleeps is woken by a request, not by its load.
        if desired == 0 {
            self.since.remove(id);
            return None;
        }
        if let (Some(idle), Some(idle_ms)) = (task.spec.timeouts.idle_ms, load.idle_ms)
            && load.under_way == 0
            && idle_ms >= idle
        {
            self.since.remove(id);
            return Some((0, format!("nobody asked for {} s", idle_ms / 1000)));
        }
        let scale = &service.scale;
        let needed = load.under_way.div_ceil(scale.queue_depth.max(1)).clamp(scale.min, scale.max.max(scale.min));
        if needed == desired {
            self.since.remove(id);
            return None;
        }
        let more = needed > desired;
        let asks = self.since.entry(id.clone()).or_insert(Asks { more, since: now });
        if asks.more != more || now < asks.since {
            *asks = Asks { more, since: now };
        }
        let long = if more { scale.up_after_ms } else { scale.down_after_ms };
        if now.since(asks.since) < long {
            return None;
        }
        self.since.remove(id);
        Some((needed, format!("{} requests are under way, {} a replica are to be", load.under_way, scale.queue_depth)))
    }
}

fn load(ledger: &Ledger, name: &str, progress: &BTreeMap<AttemptId, AttemptProgress>) -> Load {
    let versions = ledger.versions_of(name);
    let ready = versions.iter().flat_map(|(_, task)| wanted_of(task)).filter_map(|(_, replica)| replica.live());
    let ready: Vec<&Attempt> = ready.filter(|attempt| attempt.is_ready()).collect();
    let said = |attempt: &Attempt| -> Option<&Serving> { progress.get(&attempt.id)?.progress.serving.as_ref() };
    let under_way =
        ready.iter().filter_map(|attempt| said(attempt)).fold(0, |sum: u32, s| sum.saturating_add(s.running));
    let idle: Option<Vec<u64>> = ready.iter().map(|attempt| said(attempt).map(|s| s.idle_ms)).collect();
    Load { under_way, idle_ms: idle.and_then(|all| all.into_iter().min()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cases::{assigned, attempt, ledger, service, submit, take},
        task::spec::Scale,
        wire::{Phase, Progress},
    };

    /// A service that is scaled from 1 to 3 by two requests a replica, one of them ready.
    fn one_ready(idle_ms: Option<u64>) -> Ledger {
        let mut now = ledger(&["a"]);
        let mut spec = service("s", 1);
        let scale = Scale { min: 1, max: 3, queue_depth: 2, up_after_ms: 1_000, down_after_ms: 10_000 };
        spec.service.as_mut().unwrap().scale = scale;
        spec.timeouts.idle_ms = idle_ms;
        take(&mut now, submit("s", spec, 1));
        take(&mut now, assigned(&attempt("s", 1), "a", &[], 2));
        take(&mut now, Entry::Started { attempt: attempt("s", 1), at: Millis(3) });
        take(&mut now, Entry::Ready { attempt: attempt("s", 1), at: Millis(4) });
        now
    }

    fn said(running: u32, idle_ms: u64) -> BTreeMap<AttemptId, AttemptProgress> {
        let serving = Some(Serving { running, idle_ms, ..Serving::default() });
        let progress = Progress { serving, ..Progress::default() };
        let one = AttemptProgress { attempt: attempt("s", 1), phase: Phase::Serving, progress };
        BTreeMap::from([(one.attempt.clone(), one)])
    }

    fn wants(entries: &[Entry]) -> Option<u32> {
        match entries {
            [Entry::Scaled { replicas, .. }] => Some(*replicas),
            [] => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_load_that_lasts_adds_replicas_and_one_that_is_gone_takes_them_away_later() {
        let (mut ledger, mut watch) = (one_ready(None), Watch::default());
        assert_eq!(wants(&watch.scale(&ledger, &said(5, 0), Millis(10_000))), None, "a peak is no load");
        assert_eq!(wants(&watch.scale(&ledger, &said(1, 0), Millis(10_500))), None);
        assert_eq!(wants(&watch.scale(&ledger, &said(5, 0), Millis(10_900))), None, "the peak before does not count");
        let up = watch.scale(&ledger, &said(5, 0), Millis(11_900));
        assert_eq!(wants(&up), Some(3));
        take(&mut ledger, up[0].clone());
        assert_eq!(wants(&watch.scale(&ledger, &said(90, 0), Millis(12_000))), None, "no more than max");
        assert_eq!(wants(&watch.scale(&ledger, &said(0, 0), Millis(13_000))), None);
        assert_eq!(wants(&watch.scale(&ledger, &said(0, 0), Millis(22_900))), None);
        assert_eq!(wants(&watch.scale(&ledger, &said(0, 0), Millis(23_000))), Some(1));
    }

    #[test]
    fn whom_nobody_asks_sleeps_and_whoever_has_not_said_is_not_idle() {
        let (ledger, mut watch) = (one_ready(Some(60_000)), Watch::default());
        assert_eq!(wants(&watch.scale(&ledger, &BTreeMap::new(), Millis(100_000))), None);
        assert_eq!(wants(&watch.scale(&ledger, &said(0, 59_999), Millis(100_000))), None);
        assert_eq!(wants(&watch.scale(&ledger, &said(1, 60_000), Millis(100_000))), None);
        assert_eq!(wants(&watch.scale(&ledger, &said(0, 60_000), Millis(100_000))), Some(0));
        assert_eq!(wants(&Watch::default().scale(&one_ready(None), &said(0, 60_000), Millis(100_000))), None);
    }
}
