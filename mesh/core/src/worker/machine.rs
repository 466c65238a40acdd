//! The worker's turn: an event changes rows and soft state, then everything that follows is asked for.

use std::collections::VecDeque;

use super::{
    Action, AttemptRow, ChildEvent, Ending, Event, JournalRows, Settings, Stage, Worker, Write,
    attempt::{Child, Running, Sent, unexplained},
};
use crate::{
    id::AttemptId,
    ledger::entry::{Failure, FailureClass},
    wire::{Assign, FromLeader, FromWorker, Heartbeat, Phase, Progress, Report, StopReason, ToWorker},
};

/// Attempts without a result whose checkpoints or state are kept: a bound on the disk, for nobody says when a task is dropped.
const KEPT_MAX: usize = 16;

impl Worker {
    /// Starts from the journal; no child runs. `now` is CLOCK_BOOTTIME in milliseconds, here and everywhere.
    pub fn restore(rows: JournalRows, settings: Settings, now: u64) -> (Self, Vec<Action>) {
        let running = rows.attempts.into_iter().map(|row| Running::new(row, 0, now));
        let mut worker = Self {
            settings,
            highest_term: rows.highest_term,
            attempts: running.map(|r| (r.id().clone(), r)).collect(),
            written: 0,
            durable: 0,
            gated: VecDeque::new(),
            last_run: 0,
            last_seq: 0,
            heartbeat_due: now,
        };
        let actions = worker.on(Event::Tick, now);
        (worker, actions)
    }

    /// Takes an event; returns what to do, in order.
    pub fn on(&mut self, event: Event, now: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Message { request, message } => self.on_message(request, message, now, &mut actions),
            Event::Journalled(id) => self.durable = self.durable.max(id),
            Event::Child { attempt, run, event } => self.on_child(&attempt, run, event, now, &mut actions),
            Event::Uploading { attempt, progress } => {
                if let Some(running) = self.attempts.get_mut(&attempt).filter(|running| running.publishing) {
                    let Progress { step, total_steps, .. } = running.progress;
                    running.progress = Progress { step, total_steps, ..progress };
                }
            }
            Event::Published { attempt, result } => {
                self.end_if(&attempt, |s| *s == Stage::Computed, Ending::Finished(result), now, &mut actions);
            }
            Event::PublishFailed { attempt, failure } => {
                self.end_if(&attempt, |s| *s == Stage::Computed, Ending::Failed(failure), now, &mut actions);
            }
            Event::ReportAnswered { attempt, seq, answer } => {
                self.on_answer(&attempt, seq, answer, now, &mut actions);
            }
            Event::HeartbeatAnswered(answer) => self.on_heartbeat_answer(answer, now, &mut actions),
            Event::HeartbeatFailed | Event::Tick => {}
        }
        self.follow_up(now, &mut actions);
        actions
    }

    /// When the next [`Event::Tick`] is needed at the latest, should nothing happen before. W2: that is later than the
    /// last event, for whatever could be done by then has been asked for; a moment that is past for ever would make the
    /// shell spin.
    pub fn wake_at(&self, now: u64) -> u64 {
        let mut at = self.heartbeat_due;
        for running in self.attempts.values() {
            // What waits for the journal is woken by the journal, a wish to publish out of the lease by a heartbeat.
            let says = running.last_write <= self.durable && running.to_say(now).is_some();
            let retry = running.sent.as_ref().filter(|_| says);
            let retry = retry.map(|sent| sent.at.saturating_add(self.settings.report_retry_ms));
            let kill = running.child.as_ref().and_then(|child| child.kill_at);
            let lease = running.publishing.then(|| running.lease_ends()).flatten();
            let offline = running.computes().then(|| running.offline_ends());
            at = [retry, kill, lease, offline, running.run_ends()].into_iter().flatten().fold(at, u64::min);
        }
        at
    }

    /// Attempts that are not over and reported, for listings.
    pub fn attempts(&self) -> impl Iterator<Item = &AttemptRow> {
        self.attempts.values().map(|running| &running.row).filter(|row| row.stage != Stage::Kept)
    }

    /// Highest term of a leader seen, for listings.
    pub fn highest_term(&self) -> u64 {
        self.highest_term
    }

    fn on_message(&mut self, request: u64, message: ToWorker, now: u64, actions: &mut Vec<Action>) {
        let term = match &message {
            ToWorker::Assign(assign) => assign.term,
            ToWorker::Stop { term, .. } => *term,
        };
        if !self.saw_term(term, actions) {
            let answer = FromWorker::StaleTerm { highest: self.highest_term };
            return actions.push(Action::Answer { request, answer });
        }
        let answer = match message {
            ToWorker::Assign(assign) => self.on_assign(*assign, now, actions),
            ToWorker::Stop { attempt, why, .. } => {
                self.on_stop(&attempt, &why, now, actions);
                FromWorker::Journalled
            }
        };
        // Whatever the answer rests on is among the writes so far.
        self.gated.push_back((self.written, Action::Answer { request, answer }));
    }

    fn on_assign(&mut self, assign: Assign, now: u64, actions: &mut Vec<Action>) -> FromWorker {
        let id = assign.attempt.clone();
        if self.attempts.contains_key(&id) {
            return FromWorker::Journalled;
        }
        let others = self.of_same_replica(&id);
        if let Some(newer) = others.iter().find(|other| other.attempt > id.attempt) {
            return FromWorker::Refused { reason: format!("this node already has its successor {newer}") };
        }
        // A successor exists only when the ledger has given those up.
        for older in &others {
            self.superseded(older, now, actions);
        }
        let left = others.iter().filter_map(|older| self.attempts.get(older)?.row.checkpoint.clone());
        let checkpoint = left.max_by_key(|checkpoint| checkpoint.step);
        let outbox = VecDeque::from([Report::Started]);
        let state = assign.spec.task_type.keeps_state();
        let row = AttemptRow { assign, stage: Stage::Accepted, checkpoint, state, outbox, ran_ms: 0 };
        let write = self.write(Write::Attempt(Box::new(row.clone())), actions);
        self.attempts.insert(id, Running::new(row, write, now));
        FromWorker::Journalled
    }

    fn of_same_replica(&self, id: &AttemptId) -> Vec<AttemptId> {
        let same = |other: &&AttemptId| *other != id && (&other.task, other.replica) == (&id.task, id.replica);
        self.attempts.keys().filter(same).cloned().collect()
    }

    fn on_stop(&mut self, id: &AttemptId, why: &StopReason, now: u64, actions: &mut Vec<Action>) {
        if self.attempts.get(id).is_some_and(|running| running.row.stage != Stage::Kept) {
            self.drop_checkpoint_if(id, *why == StopReason::Cancelled);
            return self.superseded(id, now, actions);
        }
        // It never came, or is long over. Should it still come, `Started` will be stale and start nothing.
        self.last_seq += 1;
        actions.push(Action::SendReport { attempt: id.clone(), seq: self.last_seq, report: Report::Stopped });
    }

    fn on_child(&mut self, id: &AttemptId, run: u64, event: ChildEvent, now: u64, actions: &mut Vec<Action>) {
        let Some(running) = self.attempts.get_mut(id) else { return };
        if running.child.as_ref().is_none_or(|child| child.run != run) {
            return;
        }
        match event {
            ChildEvent::Progress { phase, progress } => {
                running.phase = phase;
                running.progress = progress;
            }
            // One that was under way when the task was dropped.
            ChildEvent::Checkpoint(_) if running.dropped => {}
            ChildEvent::Checkpoint(checkpoint) => {
                running.row.checkpoint = Some(checkpoint);
                self.write_row(id, now, actions);
            }
            ChildEvent::Pinned(pins) => {
                running.row.outbox.push_back(Report::Pinned(pins));
                self.write_row(id, now, actions);
            }
            ChildEvent::Pushed(checkpoint) => {
                // Of several that wait only the newest matters, so that the outbox has a bound. The first may be under way.
                if running.row.outbox.len() > 1 && matches!(running.row.outbox.back(), Some(Report::Checkpointed(_))) {
                    running.row.outbox.pop_back();
                }
                running.row.outbox.push_back(Report::Checkpointed(checkpoint));
                self.write_row(id, now, actions);
            }
            ChildEvent::Ready => {
                // A run after the first says it again; the ledger keeps the first.
                if running.row.stage == Stage::Running && !running.row.outbox.contains(&Report::Ready) {
                    running.row.outbox.push_back(Report::Ready);
                    self.write_row(id, now, actions);
                }
            }
            ChildEvent::Computed => {
                if running.row.stage == Stage::Running {
                    running.row.stage = Stage::Computed;
                    running.phase = Phase::Uploading;
                    self.write_row(id, now, actions);
                }
            }
            ChildEvent::Failed(failure) => {
                self.end_if(id, |s| *s == Stage::Running, Ending::Failed(failure), now, actions);
            }
            ChildEvent::Exited(exit) => {
                running.row.ran_ms = running.ran_ms(now);
                running.child = None;
                self.end_if(id, |s| *s == Stage::Running, Ending::Failed(unexplained(&exit)), now, actions);
            }
        }
    }

    fn on_answer(&mut self, id: &AttemptId, seq: u64, answer: FromLeader, now: u64, actions: &mut Vec<Action>) {
        let (term, committed) = match answer {
            FromLeader::Committed { term } => (term, true),
            FromLeader::Stale { term, .. } => (term, false),
            // Nobody decided: it is sent again when its time comes. Why it may not publish yet, heartbeats say.
            FromLeader::Unavailable { why } => {
                if let Some(running) = self.attempts.get_mut(id)
                    && running.sent.as_ref().is_some_and(|sent| sent.seq == seq && sent.report == Report::Publish)
                {
                    running.progress.note = Some(format!("waits to publish: {why}"));
                }
                return;
            }
            FromLeader::NotLeader { .. } | FromLeader::Alive { .. } => return,
        };
        if !self.saw_term(term, actions) {
            return;
        }
        let Some(running) = self.attempts.get_mut(id) else { return };
        // The answer to an earlier report says nothing about this one.
        let Some(sent) = running.sent.take_if(|sent| sent.seq == seq) else { return };
        if !committed {
            if running.row.stage == Stage::Over {
                running.row.outbox.clear();
            } else {
                self.superseded(id, now, actions);
            }
            return;
        }
        if sent.report == Report::Publish {
            if running.row.stage == Stage::Computed && running.in_lease(now) {
                running.publishing = true;
                running.progress.note = None;
                actions.push(Action::StartPublish { attempt: id.clone() });
            }
            return;
        }
        if running.row.outbox.front() == Some(&sent.report) {
            running.row.outbox.pop_front();
            if running.row.stage == Stage::Accepted {
                running.row.stage = Stage::Running;
            }
            if running.row.stage != Stage::Over || !running.row.outbox.is_empty() {
                self.write_row(id, now, actions);
            }
        }
    }

    fn on_heartbeat_answer(&mut self, answer: FromLeader, now: u64, actions: &mut Vec<Action>) {
        let FromLeader::Alive { term, sent_at, stop } = answer else { return };
        if !self.saw_term(term, actions) {
            return;
        }
        for running in self.attempts.values_mut() {
            let named = running.named_from.is_some_and(|from| from <= sent_at) && sent_at <= now;
            if named && !stop.iter().any(|(id, _)| id == running.id()) {
                running.lease_from = running.lease_from.max(Some(sent_at));
            }
        }
        for (id, why) in stop {
            self.drop_checkpoint_if(&id, why == StopReason::Cancelled);
            self.superseded(&id, now, actions);
        }
    }

    /// The ledger has no use for it any more: nothing it would still report can be committed but its end.
    fn superseded(&mut self, id: &AttemptId, now: u64, actions: &mut Vec<Action>) {
        let Some(running) = self.attempts.get_mut(id) else { return };
        match running.row.stage {
            Stage::Over | Stage::Kept => {}
            Stage::Accepted | Stage::Running | Stage::Computed | Stage::Ending(_) => {
                running.row.outbox.clear();
                running.sent = None;
                self.end_if(id, |s| !matches!(s, Stage::Ending(_)), Ending::Stopped, now, actions);
            }
        }
    }

    /// Nobody will go on from it: there is a result, or the task is dropped.
    fn drop_checkpoint_if(&mut self, id: &AttemptId, useless: bool) {
        if let Some(running) = self.attempts.get_mut(id).filter(|_| useless) {
            running.row.checkpoint = None;
            running.row.state = false;
            running.dropped = true;
        }
    }

    /// Ends an attempt that stands so: no byte flows any more, the child is asked to stop.
    fn end_if(
        &mut self,
        id: &AttemptId,
        stands: impl FnOnce(&Stage) -> bool,
        ending: Ending,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let grace = self.settings.stop_grace_ms;
        let Some(running) = self.attempts.get_mut(id).filter(|r| stands(&r.row.stage)) else { return };
        if std::mem::take(&mut running.publishing) && !matches!(ending, Ending::Finished(_)) {
            actions.push(Action::StopPublish { attempt: id.clone() });
        }
        // A wish to publish that is under way must not be answered into this.
        running.sent.take_if(|sent| sent.report == Report::Publish);
        // No successor is started after these.
        if match &ending {
            Ending::Stopped => false,
            Ending::Failed(failure) => failure.class != FailureClass::Retryable,
            Ending::Finished(_) => true,
        } {
            running.row.checkpoint = None;
            running.row.state = false;
        }
        running.row.stage = Stage::Ending(ending);
        let grace_ms = running.row.assign.spec.timeouts.stop_ms.unwrap_or(grace);
        if let Some(child) = running.child.as_mut().filter(|child| child.kill_at.is_none()) {
            child.kill_at = Some(now.saturating_add(grace_ms));
            let (run, checkpoint) = (child.run, !running.dropped);
            actions.push(Action::StopChild { attempt: id.clone(), run, checkpoint, grace_ms });
        }
        self.write_row(id, now, actions);
    }

    /// Everything that follows from where things stand.
    fn follow_up(&mut self, now: u64, actions: &mut Vec<Action>) {
        for id in self.attempts.keys().cloned().collect::<Vec<_>>() {
            self.watch_times(&id, now, actions);
            self.close(&id, now, actions);
            self.start(&id, now, actions);
            self.say(&id, now, actions);
        }
        while self.gated.front().is_some_and(|(write, _)| *write <= self.durable) {
            actions.extend(self.gated.pop_front().map(|(_, action)| action));
        }
        self.beat(now, actions);
    }

    /// The lease, the time without contact, the run's bound, the child's grace.
    fn watch_times(&mut self, id: &AttemptId, now: u64, actions: &mut Vec<Action>) {
        let Some(running) = self.attempts.get_mut(id) else { return };
        if running.publishing && !running.in_lease(now) {
            running.publishing = false;
            actions.push(Action::StopPublish { attempt: id.clone() });
        }
        if running.run_ends().is_some_and(|end| end <= now) {
            let run_ms = running.row.assign.spec.timeouts.run_ms.unwrap_or_default();
            let message = format!("timeouts.run of {} s is over", run_ms.div_ceil(1000));
            let failure = Failure { class: FailureClass::TimedOut, message };
            self.end_if(id, |_| true, Ending::Failed(failure), now, actions);
        } else if running.computes() && running.offline_ends() <= now {
            self.end_if(id, |_| true, Ending::Stopped, now, actions);
        }
        // After the ends, for one of them may leave no grace at all.
        if let Some(child) = self.attempts.get_mut(id).and_then(|running| running.child.as_mut())
            && child.kill_at.is_some_and(|at| at <= now)
        {
            // Again should it not die: the shell may have failed to reach it.
            child.kill_at = Some(now.saturating_add(self.settings.stop_grace_ms));
            actions.push(Action::KillChild { attempt: id.clone(), run: child.run });
        }
    }

    /// The end is reported once the child is gone, and forgotten once the report is taken.
    fn close(&mut self, id: &AttemptId, now: u64, actions: &mut Vec<Action>) {
        let Some(running) = self.attempts.get_mut(id) else { return };
        if let (Stage::Ending(ending), None) = (&running.row.stage, &running.child) {
            let report = ending.clone().report();
            if running.row.outbox.front() == Some(&Report::Started) && report == Report::Stopped {
                // It never ran: there is no start to speak of.
                running.row.outbox.clear();
                running.sent = None;
            }
            running.row.outbox.push_back(report);
            running.row.stage = Stage::Over;
            return self.write_row(id, now, actions);
        }
        if running.row.stage == Stage::Over && running.row.outbox.is_empty() && running.last_write <= self.durable {
            self.forget_or_keep(id, now, actions);
        }
    }

    /// A checkpoint of its own is kept in place of its predecessors'; one it started from lies with its predecessor. Of state
    /// there is one for all attempts of a replica: the first keeps it for the others.
    fn forget_or_keep(&mut self, id: &AttemptId, now: u64, actions: &mut Vec<Action>) {
        let row = self.attempts.get(id).map(|running| &running.row);
        let checkpoint = row.and_then(|row| row.checkpoint.clone());
        let stays = checkpoint.is_some() || row.is_some_and(|row| row.state);
        let kept = |worker: &Self, id: &AttemptId| worker.attempts.get(id).is_some_and(|r| r.row.stage == Stage::Kept);
        let older: Vec<AttemptId> = self.of_same_replica(id).into_iter().filter(|other| kept(self, other)).collect();
        let inherited = older.iter().any(|o| self.attempts.get(o).is_some_and(|r| r.row.checkpoint == checkpoint));
        match stays {
            true if inherited => return self.forget(id, actions),
            true => {
                if let Some(running) = self.attempts.get_mut(id) {
                    running.row.stage = Stage::Kept;
                }
                self.write_row(id, now, actions);
            }
            false => self.forget(id, actions),
        }
        // A successor that is here already may have started from any of them.
        let succeeded = |worker: &Self, id: &AttemptId| worker.of_same_replica(id).iter().any(|o| !kept(worker, o));
        if !succeeded(self, id) {
            older.iter().for_each(|other| self.forget(other, actions));
        }
        // Ids of tasks are in the order of submission: the oldest go first.
        let all = self.attempts.keys().filter(|id| kept(self, id) && !succeeded(self, id));
        let all: Vec<AttemptId> = all.cloned().collect();
        for oldest in all.iter().take(all.len().saturating_sub(KEPT_MAX)) {
            self.forget(oldest, actions);
        }
    }

    fn forget(&mut self, id: &AttemptId, actions: &mut Vec<Action>) {
        self.attempts.remove(id);
        let write = self.write(Write::Forget(id.clone()), actions);
        self.gated.push_back((write, Action::Forgotten { attempt: id.clone() }));
    }

    fn start(&mut self, id: &AttemptId, now: u64, actions: &mut Vec<Action>) {
        let durable = self.durable;
        let ready = |r: &&Running| r.row.stage == Stage::Running && r.child.is_none() && r.last_write <= durable;
        let Some(running) = self.attempts.get(id).filter(ready) else { return };
        // A superseded attempt may still be stopping on the same GPUs.
        if self.attempts.values().any(|other| other.id() != id && other.child.is_some() && other.excludes(running)) {
            return;
        }
        self.last_run += 1;
        let run = self.last_run;
        if let Some(running) = self.attempts.get_mut(id) {
            running.child = Some(Child { run, started_at: now, kill_at: None });
            let (assign, resume) = (Box::new(running.row.assign.clone()), running.row.checkpoint.clone());
            actions.push(Action::StartChild { attempt: id.clone(), run, assign, resume });
        }
    }

    /// One report of an attempt is under way at a time, so that they are committed in order.
    fn say(&mut self, id: &AttemptId, now: u64, actions: &mut Vec<Action>) {
        let retry = self.settings.report_retry_ms;
        let Some(running) = self.attempts.get_mut(id).filter(|r| r.last_write <= self.durable) else { return };
        let Some(report) = running.to_say(now) else { return };
        match running.sent.as_mut().filter(|sent| sent.report == report) {
            Some(sent) if now < sent.at.saturating_add(retry) => {}
            Some(sent) => {
                sent.at = now;
                actions.push(Action::SendReport { attempt: id.clone(), seq: sent.seq, report });
            }
            None => {
                self.last_seq += 1;
                running.sent = Some(Sent { seq: self.last_seq, report: report.clone(), at: now });
                actions.push(Action::SendReport { attempt: id.clone(), seq: self.last_seq, report });
            }
        }
    }

    fn beat(&mut self, now: u64, actions: &mut Vec<Action>) {
        if now < self.heartbeat_due {
            return;
        }
        self.heartbeat_due = now.saturating_add(self.settings.heartbeat_ms);
        // Naming an attempt acknowledges it, so it must be in the journal.
        let named = self.attempts.values_mut().filter(|r| r.row.stage != Stage::Kept && r.first_write <= self.durable);
        let attempts = named
            .map(|running| {
                running.named_from.get_or_insert(now);
                running.report()
            })
            .collect();
        actions.push(Action::SendHeartbeat(Heartbeat { node: self.settings.node.clone(), sent_at: now, attempts }));
    }

    /// Whether a leader of this term may be listened to; the highest is journalled.
    fn saw_term(&mut self, term: u64, actions: &mut Vec<Action>) -> bool {
        if term > self.highest_term {
            self.highest_term = term;
            self.write(Write::Term(term), actions);
        }
        term == self.highest_term
    }

    fn write_row(&mut self, id: &AttemptId, now: u64, actions: &mut Vec<Action>) {
        let Some(running) = self.attempts.get(id) else { return };
        let row = AttemptRow { ran_ms: running.ran_ms(now), ..running.row.clone() };
        let write = self.write(Write::Attempt(Box::new(row)), actions);
        if let Some(running) = self.attempts.get_mut(id) {
            running.last_write = write;
        }
    }

    fn write(&mut self, write: Write, actions: &mut Vec<Action>) -> u64 {
        self.written += 1;
        actions.push(Action::Journal { id: self.written, write });
        self.written
    }
}
