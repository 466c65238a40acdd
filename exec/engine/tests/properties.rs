//! Whatever else is computed beside it, in whatever pieces, found again, thrown out, guessed or failed for want of
//! memory: a request is answered as it is alone.

mod fake;

use fake::{Env, Words, alone, by_hand, request, shape};
use mloc_engine::admission::Settings;
use mloc_engine::forward::{AdapterId, ForwardError};
use mloc_engine::guess::Guessing;
use mloc_engine::request::{Constraint, Request, Sampling};
use mloc_engine::schedule::Cache;
use mloc_engine::vocabulary::Vocabulary;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Prompts that begin alike.
fn prompt() -> impl Strategy<Value = Vec<u32>> {
    let beginnings = vec![vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10], vec![1, 2, 3, 4, 20, 21], vec![5]];
    (select(beginnings), prop::collection::vec(0..30_u32, 0..12)).prop_map(|(mut prompt, rest)| {
        prompt.extend(rest);
        prompt
    })
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let plain = (select(vec![0.0_f32, 0.7, 1.3]), any::<u64>());
    let cuts = (select(vec![1.0_f32, 0.8]), select(vec![0_usize, 5]), select(vec![0.0_f32, 0.1]));
    let penalties = (select(vec![1.0_f32, 1.3]), select(vec![0.0_f32, 0.5]), select(vec![0.0_f32, 0.4]));
    (plain, cuts, penalties, any::<bool>()).prop_map(|(plain, cuts, penalties, biased)| Sampling {
        temperature: plain.0,
        seed: Some(plain.1),
        top_p: cuts.0,
        top_k: cuts.1,
        min_p: cuts.2,
        repetition_penalty: penalties.0,
        presence_penalty: penalties.1,
        frequency_penalty: penalties.2,
        logit_bias: if biased { [(4, 1.0)].into() } else { [].into() },
    })
}

fn constraint() -> impl Strategy<Value = Option<Constraint>> {
    let regex = Constraint::Regex("(ab|[c-e]){3,9}é?".to_owned());
    let choice = Constraint::Choice(vec!["abc".to_owned(), "abd👩".to_owned(), "a".to_owned()]);
    prop_oneof![8 => Just(None), 1 => Just(Some(regex)), 1 => Just(Some(choice)), 1 => Just(Some(Constraint::JsonObject))]
}

fn any_request() -> impl Strategy<Value = Request> {
    let lengths = (0..25_usize, 0..4_usize);
    let choices = prop_oneof![4 => Just((1, 1)), 1 => Just((2, 2)), 1 => Just((1, 3)), 1 => Just((2, 3))];
    let adapter = prop_oneof![3 => Just(None), 1 => (0..2_u32).prop_map(|id| Some(AdapterId(id)))];
    let stop = (select(vec![vec![], vec!["ab", "e "], vec!["👩"], vec!["a", "bc"]]), any::<bool>(), any::<bool>());
    let logprobs = (select(vec![None, Some(0), Some(3)]), select(vec![None, None, Some(2)]));
    (prompt(), adapter, choices, lengths, sampling(), (stop, constraint()), logprobs).prop_map(
        |(prompt, adapter, (choices, best_of), (most, min), sampling, (stop, constraint), logprobs)| {
            let mut request = request(&prompt, most);
            request.stop.strings = stop.0.into_iter().map(str::to_owned).collect();
            (request.stop.ignore_eos, request.stop.include_in_output) = (stop.1, stop.2);
            request.stop.tokens = if stop.1 { vec![17] } else { Vec::new() };
            let min_tokens = min.min(most);
            Request {
                adapter,
                choices,
                best_of,
                min_tokens,
                sampling,
                logprobs: logprobs.0,
                prompt_logprobs: logprobs.1,
                constraint,
                ..request
            }
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    let guessing = select(vec![None, Some(Guessing { tokens: 3, longest: 3, shortest: 1 }), Some(Guessing::default())]);
    let cache = select(vec![Cache::Paged, Cache::Paged, Cache::Static]);
    (3..8_usize, 0..30_usize, cache, any::<bool>(), guessing).prop_map(
        |(sequences, more, cache, prefix_cache, guessing)| Settings {
            sequences,
            step_tokens: sequences + more,
            cache,
            prefix_cache,
            guessing,
            ..Settings::default()
        },
    )
}

/// A request, at which step it comes, and whether it is taken back so many steps later, or heard only so far.
type Client = (Request, u32, Option<u32>, Option<usize>);

fn client() -> impl Strategy<Value = Client> {
    let gone = prop_oneof![6 => Just((None, None)), 1 => (0..15_u32).prop_map(|steps| (Some(steps), None)),
        1 => (1..15_usize).prop_map(|events| (None, Some(events)))];
    (any_request(), 0..25_u32, gone).prop_map(|(request, at, (cancelled, patience))| (request, at, cancelled, patience))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn a_request_is_answered_as_it_is_alone(
        clients in prop::collection::vec(client(), 1..9),
        settings in settings(),
        block_tokens in 1..6_usize,
        spare in 0..60_usize,
        memory in prop_oneof![4 => Just(None), 1 => (1..12_usize).prop_map(Some)],
        failures in prop::collection::btree_set(0..60_usize, 0..4),
    ) {
        // As few blocks as the longest needs, and some: 22 tokens of prompt and 25 of up to 3 answers.
        let blocks = 47_usize.div_ceil(block_tokens) * if settings.cache == Cache::Static { 3 } else { 1 };
        let mut env = Env::new(shape(blocks + spare / block_tokens, block_tokens), settings.clone());
        for id in 0..2 {
            env.engine.admission().adapters().add(&format!("a{id}"), AdapterId(id), Box::new(|_| ())).expect("new");
        }
        {
            let mut log = env.log.lock().expect("no panic");
            log.memory = memory;
            let error = |tokens| ForwardError::OutOfMemory { tokens, detail: "as told".to_owned() };
            log.failures = failures.into_iter().map(|call| (call, error(call))).collect();
        }
        // Which client each came to be, and who is taken back when.
        let mut numbers = vec![None; clients.len()];
        while numbers.iter().any(Option::is_none) || !env.engine.is_idle() {
            prop_assert!(env.steps < 20_000, "E3: {} requests don't end", env.engine.requests());
            for (place, (request, at, _, patience)) in clients.iter().enumerate() {
                if *at == env.steps {
                    numbers[place] = Some(env.try_submit(request.clone(), *patience).expect("it fits"));
                }
            }
            for (place, (_, at, cancelled, _)) in clients.iter().enumerate() {
                if let (Some(number), Some(steps)) = (numbers[place], cancelled) && at + steps == env.steps {
                    env.cancel(number);
                }
            }
            env.step();
        }
        env.run();
        if settings.cache == Cache::Static {
            prop_assert_eq!(env.engine.stats().preemptions, 0, "what is set aside is there");
        }
        for (number, (request, _, cancelled, patience)) in numbers.into_iter().zip(&clients) {
            let heard = env.heard(number.expect("submitted"));
            let expected = alone(request);
            if let Some(error) = &heard.failed {
                // A step of one token found no memory, by chance or by what was told.
                let told = matches!(error, mloc_engine::request::RequestError::Forward(ForwardError::OutOfMemory { .. }));
                prop_assert!(told, "{error}");
            } else if cancelled.is_some() || patience.is_some() {
                for (heard, expected) in heard.answers.iter().zip(&expected.answers).filter(|_| request.best_of == request.choices) {
                    prop_assert!(expected.ids.starts_with(&heard.ids), "{:?} of {:?}", heard.ids, expected.ids);
                }
            } else {
                prop_assert_eq!(&heard.prompt, &expected.prompt);
                prop_assert_eq!(&heard.answers, &expected.answers);
                let tokens = heard.usage.map(|usage| usage.completion_tokens);
                prop_assert_eq!(tokens, expected.usage.map(|usage| usage.completion_tokens));
            }
        }
    }

    /// And alone it is answered as by hand.
    #[test]
    fn a_greedy_answer_is_the_likeliest_tokens(prompt in prompt(), count in 1..30_usize, adapter in prop::option::of(0..2_u32)) {
        let adapter = adapter.map(AdapterId);
        let heard = alone(&Request { adapter, ..request(&prompt, count) });
        prop_assert_eq!(&heard.answers[0].ids, &by_hand(&prompt, adapter, Words::new().size(), count));
        prop_assert_eq!(&heard.answers[0].text, &Words::new().decode(&heard.answers[0].ids));
    }

    /// One that comes late is not overtaken for ever by those that come after it.
    #[test]
    fn a_long_prompt_ends_among_ever_more_short_ones(every in 1..4_u32, place in any::<Index>()) {
        let settings = Settings { sequences: 4, step_tokens: 6, ..Settings::default() };
        let mut env = Env::new(shape(30, 4), settings);
        let late = place.index(12) as u32;
        let mut long = None;
        while long.is_none_or(|long| !env.heard(long).is_over()) {
            prop_assert!(env.steps < 400, "E3: the long one doesn't end");
            if env.steps == late {
                long = Some(env.submit(request(&[9; 60], 20)));
            } else if env.steps.is_multiple_of(every) {
                env.submit(request(&[env.steps % 30, 3], 6));
            }
            env.step();
        }
        env.run();
    }
}
