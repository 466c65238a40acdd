//! The machine of a run without anything around it: events in, actions out.

use std::collections::BTreeMap;

use mloc_agent::{
    Assistant, Message, ToolCall, Usage,
    event::{CallId, Decider, Event, Failure, Outcome, Record, Refused, Setup, ToolSpec, VERSION},
    run::{Action, Ask, Calls, Run, Standing},
    settings::{Budgets, Patience, ToolChoice},
};
use proptest::prelude::*;
use serde_json::json;

/// A run, its records, and a clock that is moved by hand.
struct Env {
    run: Run,
    records: Vec<Record>,
    now: u64,
}

fn setup() -> Setup {
    let schema = json!({
        "type": "object", "properties": { "x": { "type": "integer" } }, "required": ["x"], "additionalProperties": false,
    });
    let tool = |name: &str, idempotent| ToolSpec {
        name: name.into(),
        description: String::new(),
        schema: schema.clone(),
        idempotent,
    };
    Setup {
        agent: "a".into(),
        messages: vec![Message::User { content: "go".into() }],
        tools: vec![tool("look", true), tool("send", false), tool("pay", false)],
        approval: vec!["pay".into()],
        tool_choice: ToolChoice::Auto,
        budgets: Budgets { steps: 10, wall_time_s: 100, tokens: 10_000, answer_tokens: None },
        patience: Patience { repeats: 3, bad_calls: 2, model_failures: 1, approval_s: 1000 },
    }
}

impl Env {
    fn new(setup: Setup) -> Self {
        let event = Event::RunStarted { run: "r".into(), setup, metadata: BTreeMap::new() };
        let first = Record { v: VERSION, n: 0, at: 1_000_000, event };
        let run = Run::start(&first).unwrap();
        Self { run, now: first.at, records: vec![first] }
    }

    fn happens(&mut self, event: Event) {
        let record = Record { v: VERSION, n: self.run.next_n(), at: self.now, event };
        self.run.apply(&record).unwrap();
        self.records.push(record);
    }

    fn passes(&mut self, seconds: u64) -> &mut Self {
        self.now += seconds * 1000;
        self
    }

    fn next(&self) -> Action {
        // What a log says is what a run is.
        let again = Run::restore(&self.records).unwrap();
        assert_eq!(again.next(self.now), self.run.next(self.now));
        self.run.next(self.now)
    }

    /// Does what needs nobody, up to what needs somebody.
    fn settle(&mut self) -> Action {
        loop {
            match self.next() {
                Action::Note(events) => events.into_iter().for_each(|event| self.happens(event)),
                other => return other,
            }
        }
    }

    #[track_caller]
    fn asked(&mut self) -> Ask {
        match self.settle() {
            Action::Ask(ask) => {
                self.happens(Event::ModelAsked { step: ask.step });
                ask
            }
            other => panic!("it does not ask: {other:?}"),
        }
    }

    fn answers(&mut self, calls: &[(&str, &str)]) {
        let step = self.asked().step;
        let call = |(i, (name, arguments)): (usize, &(&str, &str))| ToolCall {
            id: format!("c{i}"),
            name: (*name).to_owned(),
            arguments: (*arguments).to_owned(),
        };
        let tool_calls = calls.iter().enumerate().map(call).collect();
        let usage = Some(Usage { prompt_tokens: 100, completion_tokens: 10 });
        let message = Assistant { content: "said".into(), tool_calls };
        self.happens(Event::ModelAnswered { step, message, usage, finish_reason: None });
    }

    /// Starts what is to be called; names and steps.
    #[track_caller]
    fn started(&mut self) -> Vec<CallId> {
        match self.settle() {
            Action::Call(calls) => calls
                .into_iter()
                .map(|call| {
                    self.happens(Event::ToolStarted { call: call.id, tool: call.tool, arguments: call.arguments });
                    call.id
                })
                .collect(),
            other => panic!("it does not call: {other:?}"),
        }
    }

    fn returned(&mut self, call: CallId, content: &str) {
        self.happens(Event::ToolFinished { call, tool: "t".into(), outcome: Outcome::done(content) });
    }

    /// One answer with one call, and its result.
    fn calls(&mut self, name: &str, arguments: &str, result: &str) {
        self.answers(&[(name, arguments)]);
        let started = self.started();
        self.returned(started[0], result);
    }

    /// What the model was told last.
    fn told(&self) -> String {
        match self.run.messages().last().unwrap() {
            Message::Tool { content, .. } => content.clone(),
            other => format!("{other:?}"),
        }
    }

    fn failed(&mut self) -> Option<Failure> {
        self.settle();
        match self.run.standing() {
            Standing::Failed { why, .. } => Some(why),
            _ => None,
        }
    }
}

fn id(step: u32, place: u32) -> CallId {
    CallId { step, place }
}

#[test]
fn a_run_asks_calls_and_finishes() {
    let mut env = Env::new(setup());
    env.answers(&[("look", r#"{"x":1}"#), ("send", r#"{"x":2}"#)]);
    assert_eq!(env.started(), [id(1, 0), id(1, 1)], "both at once");
    env.returned(id(1, 1), "sent");
    assert!(matches!(env.settle(), Action::Wait { .. }), "the first is still on its way");
    env.returned(id(1, 0), "seen");
    let results: Vec<_> = env.run.messages()[2..].to_vec();
    let tool = |id: &str, content: &str| Message::Tool { tool_call_id: id.into(), content: content.into() };
    assert_eq!(results, [tool("c0", "seen"), tool("c1", "sent")], "in the order of the calls");
    env.answers(&[]);
    assert_eq!(env.settle(), Action::Over);
    assert_eq!(env.run.standing(), Standing::Finished { answer: "said".into() });
    let used = env.run.used();
    assert_eq!((used.steps, used.calls, used.prompt_tokens, used.completion_tokens), (2, 2, 200, 20));
}

#[test]
fn the_last_answer_is_not_offered_tools() {
    let mut env = Env::new(Setup { budgets: Budgets { steps: 2, ..setup().budgets }, ..setup() });
    env.answers(&[("look", r#"{"x":1}"#)]);
    let started = env.started();
    env.returned(started[0], "");
    let Action::Ask(ask) = env.settle() else { panic!() };
    assert_eq!(ask.calls, Calls::None);
    env.answers(&[("look", r#"{"x":2}"#)]);
    assert_eq!(env.failed(), Some(Failure::Steps), "it calls all the same");
}

#[test]
fn a_run_can_be_made_to_begin_with_a_call() {
    let mut env = Env::new(Setup { tool_choice: ToolChoice::Required, ..setup() });
    assert_eq!(env.asked().calls, Calls::Required);
    // Its process was killed meanwhile: it is the first answer still.
    env.happens(Event::Resumed);
    env.calls("look", r#"{"x":1}"#, "seen");
    let Action::Ask(ask) = env.settle() else { panic!() };
    assert_eq!((ask.step, ask.calls), (2, Calls::Allowed), "then it may answer");
    // One answer is all it may have: it has to say something.
    let budgets = Budgets { steps: 1, ..setup().budgets };
    let mut env = Env::new(Setup { tool_choice: ToolChoice::Required, budgets, ..setup() });
    assert_eq!(env.asked().calls, Calls::None);
}

#[test]
fn tokens_are_bounded_and_a_question_has_what_is_left() {
    let mut env = Env::new(Setup { budgets: Budgets { tokens: 300, ..setup().budgets }, ..setup() });
    env.calls("look", r#"{"x":1}"#, "");
    let Action::Ask(ask) = env.settle() else { panic!() };
    assert_eq!(ask.max_tokens, 300 - 110 - 110, "what is known of the next question is not for the answer");
    env.calls("look", r#"{"x":2}"#, "");
    assert_eq!(env.failed(), Some(Failure::Tokens));
}

#[test]
fn time_is_that_of_work() {
    let mut env = Env::new(setup());
    env.answers(&[("pay", r#"{"x":1}"#)]);
    assert!(matches!(env.settle(), Action::Wait { .. }));
    assert_eq!(env.run.standing(), Standing::WaitingForApproval);
    // A person takes their time, and a process is away for long.
    env.passes(900).happens(Event::ApprovalGiven { call: id(1, 0), approve: true, by: Decider::Client, note: None });
    env.passes(60);
    assert_eq!(env.started(), [id(1, 0)]);
    env.returned(id(1, 0), "");
    env.passes(10_000).happens(Event::Resumed);
    env.passes(30);
    assert!(matches!(env.settle(), Action::Ask(_)), "90 of its 100 seconds are over");
    env.asked();
    env.passes(9);
    assert_eq!(env.next(), Action::Wait { until: env.now + 1000 });
    env.passes(1);
    assert_eq!(env.failed(), Some(Failure::WallTime));
}

#[test]
fn what_a_model_gets_wrong_it_is_told_and_then_it_is_enough() {
    let mut env = Env::new(setup());
    let cases = [
        ("lok", "{}", "did you mean `look`?"),
        ("look", r#"{"x":"#, "they are not JSON"),
        ("look", "[1]", "no object"),
        ("look", r#"{"x":"1"}"#, "is not of type \"integer\""),
        ("look", r#"{"y":1}"#, "\"x\" is a required property"),
        ("look", "", "\"x\" is a required property"),
    ];
    for (i, (name, arguments, wanted)) in cases.into_iter().enumerate() {
        env.answers(&[(name, arguments)]);
        env.settle();
        assert!(env.told().contains(wanted), "{}", env.told());
        // One that is right begins the count anew.
        if i % 2 == 1 {
            env.calls("look", &format!(r#"{{"x":{i}}}"#), "");
        }
    }
    for i in 0..3 {
        env = if i == 0 { Env::new(setup()) } else { env };
        env.answers(&[("nothing", &i.to_string())]);
    }
    assert_eq!(env.failed(), Some(Failure::BadCalls));
}

#[test]
fn a_circle_is_told_and_then_ends_the_run() {
    let mut env = Env::new(setup());
    env.calls("look", r#"{"x":1}"#, "same");
    env.calls("look", r#"{"x":1}"#, "same");
    env.answers(&[("look", r#"{ "x": 1 }"#)]);
    env.settle();
    assert!(env.told().contains("came 3 times in a row"), "{}", env.told());
    assert_eq!(env.run.used().calls, 2, "the third was not made");
    env.answers(&[("look", r#"{"x":1}"#)]);
    assert_eq!(env.failed(), Some(Failure::Circle));

    let mut env = Env::new(setup());
    for result in ["queued", "running", "running"] {
        env.calls("look", r#"{"x":1}"#, result);
    }
    env.answers(&[("look", r#"{"x":1}"#)]);
    env.settle();
    assert!(env.told().contains("in a row"), "two results were the same");
    env.calls("look", r#"{"x":2}"#, "");
    assert_eq!(env.failed(), None, "it did something else");
}

#[test]
fn a_flood_of_calls_in_one_answer_is_cut() {
    let mut env = Env::new(setup());
    let arguments: Vec<String> = (0..40).map(|i| format!(r#"{{"x":{i}}}"#)).collect();
    let calls: Vec<_> = arguments.iter().map(|arguments| ("look", arguments.as_str())).collect();
    env.answers(&calls);
    assert_eq!(env.started().len(), 32);
    let mut env = Env::new(setup());
    env.answers(&[("send", r#"{"x":1}"#); 5]);
    assert_eq!(env.started().len(), 2, "the same one is made fewer times than makes a circle");
}

#[test]
fn a_person_is_asked_and_may_say_no_or_nothing() {
    let mut env = Env::new(setup());
    env.answers(&[("pay", r#"{"x":1}"#), ("look", r#"{"x":1}"#)]);
    assert_eq!(env.started(), [id(1, 1)], "what needs nobody does not wait");
    assert_eq!(env.run.standing(), Standing::Running);
    env.returned(id(1, 1), "");
    let note = Some("too dear".to_owned());
    env.happens(Event::ApprovalGiven { call: id(1, 0), approve: false, by: Decider::Client, note });
    let told = env
        .run
        .messages()
        .iter()
        .any(|message| matches!(message, Message::Tool { content, .. } if content.contains("too dear")));
    assert!(told);
    env.answers(&[("pay", r#"{"x":2}"#)]);
    assert_eq!(env.settle(), Action::Wait { until: env.now + 1_000_000 });
    env.passes(1000).settle();
    assert!(env.told().contains("not approved"));
    assert_eq!(env.run.used().calls, 1);
}

#[test]
fn a_call_that_was_on_its_way_is_made_again_only_if_that_does_not_matter() {
    let mut env = Env::new(setup());
    env.answers(&[("look", r#"{"x":1}"#), ("send", r#"{"x":1}"#), ("look", r#"{"x":2}"#)]);
    assert_eq!(env.started().len(), 3);
    env.returned(id(1, 2), "seen");
    env.happens(Event::Resumed);
    assert_eq!(env.started(), [id(1, 0)], "not the one that is done, nor the one that counts");
    env.returned(id(1, 0), "seen");
    let told = &env.run.messages()[3];
    assert!(
        matches!(told, Message::Tool { content, .. } if content.contains("outcome of this call is unknown")),
        "{told:?}"
    );

    // A call that kills its process each time is given up.
    let mut env = Env::new(setup());
    env.answers(&[("look", r#"{"x":1}"#)]);
    for _ in 0..3 {
        assert_eq!(env.started(), [id(1, 0)]);
        env.happens(Event::Resumed);
    }
    env.settle();
    assert!(env.told().contains("unknown"));
}

#[test]
fn a_question_that_was_on_its_way_is_asked_again() {
    let mut env = Env::new(setup());
    assert_eq!(env.asked().step, 1);
    env.happens(Event::Resumed);
    assert_eq!(env.asked().step, 1);
    let failed = |again| Event::ModelFailed { step: 1, message: "busy".into(), again };
    env.happens(failed(true));
    assert_eq!(env.asked().step, 1);
    env.happens(failed(true));
    assert_eq!(env.failed(), Some(Failure::Model), "its patience is one failure");
    let mut env = Env::new(setup());
    env.asked();
    env.happens(failed(false));
    assert_eq!(env.failed(), Some(Failure::Model));
}

#[test]
fn what_cannot_have_happened_changes_nothing() {
    let mut env = Env::new(setup());
    let record = |n, event| Record { v: VERSION, n, at: env.now, event };
    let finished = Event::ToolFinished { call: id(1, 0), tool: "look".into(), outcome: Outcome::done("") };
    assert!(env.run.apply(&record(1, finished.clone())).is_err());
    assert!(env.run.apply(&record(2, Event::Resumed)).is_err(), "a record is missing");
    assert!(env.run.apply(&Record { v: VERSION + 1, ..record(1, Event::Resumed) }).is_err());
    env.answers(&[("look", r#"{"x":1}"#)]);
    assert!(env.run.apply(&Record { v: VERSION, n: env.run.next_n(), at: env.now, event: finished.clone() }).is_err());
    env.started();
    env.happens(finished.clone());
    assert!(env.run.apply(&Record { v: VERSION, n: env.run.next_n(), at: env.now, event: finished }).is_err(), "twice");
}

#[derive(Clone, Debug)]
enum Move {
    Call(Vec<(u8, u8)>),
    Say,
    FailModel(bool),
    Return(u8, u8),
    Approve(u8, bool),
    Kill,
    Pass(u64),
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        4 => proptest::collection::vec((0u8..5, 0u8..3), 1..4).prop_map(Move::Call),
        1 => Just(Move::Say),
        1 => any::<bool>().prop_map(Move::FailModel),
        6 => (any::<u8>(), 0u8..2).prop_map(|(which, result)| Move::Return(which, result)),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(which, approve)| Move::Approve(which, approve)),
        1 => Just(Move::Kill),
        2 => (0u64..20).prop_map(Move::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A1, A2, A3: whatever model, tools, people and kills do.
    #[test]
    fn no_run_breaks_its_promises(moves in proptest::collection::vec(moves(), 1..80)) {
        let mut env = Env::new(setup());
        let budgets = env.run.setup().budgets.clone();
        let mut on_their_way: Vec<(CallId, String)> = Vec::new();
        let mut starts: BTreeMap<CallId, u32> = BTreeMap::new();
        let mut finished: BTreeMap<CallId, u32> = BTreeMap::new();
        for one in moves {
            // What the machine says is done at once.
            let action = loop {
                match env.next() {
                    Action::Note(events) => for event in events {
                        if let Event::ToolFinished { call, .. } = &event {
                            *finished.entry(*call).or_default() += 1;
                        }
                        env.happens(event);
                    },
                    Action::Call(calls) => for call in calls {
                        prop_assert!(!finished.contains_key(&call.id), "A1: {} has its end", call.id);
                        let times = starts.entry(call.id).or_default();
                        *times += 1;
                        prop_assert!(*times == 1 || call.tool == "look", "A2: {} made {times} times", call.tool);
                        on_their_way.push((call.id, call.tool.clone()));
                        env.happens(Event::ToolStarted { call: call.id, tool: call.tool, arguments: call.arguments });
                    },
                    Action::Ask(ask) => {
                        prop_assert!(ask.step <= budgets.steps, "A3");
                        env.happens(Event::ModelAsked { step: ask.step });
                        break Some(ask.step);
                    }
                    Action::Wait { until } => {
                        prop_assert!(until >= env.now);
                        break matches!(env.records.last().map(|last| &last.event), Some(Event::ModelAsked { .. }))
                            .then(|| env.run.used().steps);
                    }
                    Action::Over => break None,
                }
            };
            if env.run.is_over() {
                break;
            }
            match (one, action) {
                (Move::Call(calls), Some(step)) => {
                    let names = ["look", "send", "pay", "none", "look"];
                    let call = |(i, (which, x)): (usize, &(u8, u8))| ToolCall {
                        id: format!("c{i}"),
                        name: names[*which as usize].to_owned(),
                        arguments: if *which == 4 { "{".into() } else { format!(r#"{{"x":{x}}}"#) },
                    };
                    let tool_calls = calls.iter().enumerate().map(call).collect();
                    let message = Assistant { content: String::new(), tool_calls };
                    env.happens(Event::ModelAnswered { step, message, usage: None, finish_reason: None });
                }
                (Move::Say, Some(step)) => {
                    let message = Assistant { content: "done".into(), tool_calls: vec![] };
                    env.happens(Event::ModelAnswered { step, message, usage: None, finish_reason: None });
                }
                (Move::FailModel(again), Some(step)) => {
                    env.happens(Event::ModelFailed { step, message: "x".into(), again });
                }
                (Move::Return(which, result), _) if !on_their_way.is_empty() => {
                    let (call, tool) = on_their_way.swap_remove(which as usize % on_their_way.len());
                    *finished.entry(call).or_default() += 1;
                    env.happens(Event::ToolFinished { call, tool, outcome: Outcome::done(result.to_string()) });
                }
                (Move::Approve(which, approve), _) => {
                    let asked: Vec<CallId> = env.run.asked().iter().map(|(call, _)| *call).collect();
                    if let Some(call) = asked.get(which as usize % asked.len().max(1)) {
                        let by = Decider::Client;
                        env.happens(Event::ApprovalGiven { call: *call, approve, by, note: None });
                    }
                }
                (Move::Kill, _) => {
                    on_their_way.clear();
                    env.happens(Event::Resumed);
                }
                (Move::Pass(seconds), _) => { env.passes(seconds); }
                (Move::Call(_) | Move::Say | Move::FailModel(_) | Move::Return(..), _) => {}
            }
        }
        prop_assert!(finished.values().all(|times| *times == 1), "A1: one end each: {finished:?}");
        let used = env.run.used();
        prop_assert!(used.steps <= budgets.steps && used.elapsed_ms <= budgets.wall_time_ms() + 20_000, "A3: {used:?}");
    }
}

#[test]
fn refusals_are_in_the_log_with_their_reason() {
    let mut env = Env::new(setup());
    env.answers(&[("nothing", "{}")]);
    env.settle();
    let why = env.records.iter().find_map(|record| match &record.event {
        Event::ToolRefused { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, Some(Refused::UnknownTool));
}
