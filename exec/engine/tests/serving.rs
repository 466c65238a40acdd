//! What clients are promised, case by case, on a model that can't be fooled.

mod fake;

use std::sync::mpsc::channel;

use fake::{Env, Words, alone, by_hand, request, shape};
use mloc_engine::admission::Settings;
use mloc_engine::forward::{AdapterId, ForwardError};
use mloc_engine::guess::Guessing;
use mloc_engine::request::{Constraint, FinishReason, Request, RequestError, Sampling};
use mloc_engine::schedule::Cache;
use mloc_engine::vocabulary::Vocabulary;

fn tokens(env: &Env) -> Vec<usize> {
    env.log.lock().expect("no panic").tokens.clone()
}

fn warm(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed: Some(seed), ..Sampling::default() }
}

fn width() -> usize {
    Words::new().size()
}

#[test]
fn a_prompt_is_cut_into_chunks_and_those_that_answer_go_first() {
    let settings = Settings { sequences: 4, step_tokens: 8, ..Settings::default() };
    let mut env = Env::new(shape(40, 4), settings);
    let short = env.submit(request(&[1, 2], 10));
    env.step();
    env.submit(request(&[3; 20], 2));
    env.run();
    // The short one's token and seven of the prompt, until it is done.
    assert_eq!(tokens(&env)[..5], [2, 8, 8, 7, 2]);
    assert_eq!(env.ids(short), by_hand(&[1, 2], None, width(), 10));
}

#[test]
fn a_prompt_that_was_there_is_not_computed_again() {
    let mut env = Env::new(shape(40, 4), Settings::default());
    let prompt: Vec<u32> = (0..18).collect();
    let first = env.submit(request(&prompt, 3));
    env.run();
    let again = env.submit(request(&prompt, 3));
    let longer = env.submit(request(&[&prompt[..17], &[1, 2]].concat(), 3));
    env.run();
    // 16 of 18 and of 19 tokens are full blocks.
    assert_eq!(tokens(&env), [18, 1, 1, 2 + 3, 2, 2]);
    let cached = |client| env.heard(client).usage.expect("done").cached_tokens;
    assert_eq!([cached(first), cached(again), cached(longer)], [0, 16, 16]);
    assert_eq!((env.engine.stats().prefix_queries, env.engine.stats().prefix_hits), (18 + 18 + 19, 32));
    assert_eq!(env.ids(first), env.ids(again));
}

#[test]
fn an_answer_is_found_again_as_part_of_the_next_prompt() {
    let mut env = Env::new(shape(40, 4), Settings::default());
    let first = env.submit(request(&[1, 2, 3], 10));
    env.run();
    let talk = [&[1, 2, 3], &env.ids(first)[..], &[4, 5]].concat();
    let second = env.submit(request(&talk, 1));
    env.run();
    // The last token of an answer is never computed: 12 of 13 tokens are there.
    assert_eq!(env.heard(second).usage.expect("done").cached_tokens, 12);
}

#[test]
fn answers_to_one_prompt_share_its_blocks_until_they_differ() {
    let mut env = Env::new(shape(40, 4), Settings::default());
    let client = env.submit(Request { choices: 3, best_of: 3, sampling: warm(5), ..request(&[1, 2, 3, 4, 5, 6], 4) });
    env.step();
    assert_eq!((tokens(&env), env.engine.stats().resident_blocks), (vec![6], 2), "the prompt once");
    env.step();
    // The half block is copied for all but the one that writes to it last.
    assert_eq!((env.log.lock().expect("no panic").copies, env.engine.stats().resident_blocks), (2, 4));
    env.run();
    let heard = env.heard(client);
    assert_eq!(heard.answers.len(), 3);
    assert!(heard.answers[0].ids != heard.answers[1].ids, "each answer has draws of its own");
    assert_eq!(heard.usage.expect("done").completion_tokens, 12);
}

#[test]
fn the_best_answers_come_first() {
    let wanted = Request { best_of: 5, choices: 5, logprobs: Some(0), sampling: warm(9), ..request(&[1, 2, 3], 6) };
    let all = alone(&wanted);
    let best = alone(&Request { choices: 2, logprobs: None, ..wanted });
    let mean = |place: usize| {
        let answer = &all.answers[place];
        answer.logprobs.iter().map(|logprobs| logprobs.chosen.logprob).sum::<f32>() / answer.logprobs.len() as f32
    };
    let mut order: Vec<usize> = (0..5).collect();
    order.sort_by(|a, b| mean(*b).total_cmp(&mean(*a)));
    let expected: Vec<_> = order[..2].iter().map(|place| all.answers[*place].ids.clone()).collect();
    assert_eq!(best.answers.iter().map(|answer| answer.ids.clone()).collect::<Vec<_>>(), expected);
    assert!(best.answers.iter().all(|answer| answer.logprobs.is_empty()), "nobody asked for them");
}

#[test]
fn the_newest_is_thrown_out_and_answers_the_same() {
    let settings = Settings { prefix_cache: false, ..Settings::default() };
    let mut env = Env::new(shape(10, 2), settings.clone());
    let clients: Vec<usize> = (1..5).map(|first| env.submit(request(&[first, 2, 3], 12))).collect();
    env.run();
    assert!(env.engine.stats().preemptions > 0);
    for (client, first) in clients.into_iter().zip(1..) {
        assert_eq!(env.ids(client), by_hand(&[first, 2, 3], None, width(), 12));
    }
    // With all of it set aside before, fewer run at once and none is thrown out.
    let mut env = Env::new(shape(10, 2), Settings { cache: Cache::Static, ..settings });
    (1..5).for_each(|first| _ = env.submit(request(&[first, 2, 3], 12)));
    env.step();
    assert_eq!((env.engine.stats().running, env.engine.stats().waiting), (1, 3));
    env.run();
    assert_eq!(env.engine.stats().preemptions, 0);
}

#[test]
fn what_is_set_aside_is_enough_for_all_answers() {
    let settings = Settings { cache: Cache::Static, prefix_cache: false, ..Settings::default() };
    // 5 blocks an answer, the first of which all share: 13 of 18.
    let mut env = Env::new(shape(18, 2), settings);
    let three = Request { choices: 3, best_of: 3, sampling: warm(3), ..request(&[1, 2, 3], 7) };
    (0..2).for_each(|_| _ = env.submit(three.clone()));
    (0..2).for_each(|_| env.step());
    assert_eq!((env.engine.stats().running, env.engine.stats().waiting), (3, 1));
    env.run();
    assert_eq!(env.engine.stats().preemptions, 0);
    assert_eq!(env.heard(0).answers, env.heard(1).answers);
}

#[test]
fn guesses_save_steps_and_change_nothing() {
    let prompt = [3, 7, 4, 1, 8, 10, 9, 4];
    let run = |guessing| {
        let mut env = Env::new(shape(60, 4), Settings { guessing, ..Settings::default() });
        let client = env.submit(Request { sampling: warm(4), ..request(&prompt, 60) });
        env.run();
        (env.ids(client), tokens(&env).len(), env.engine.stats().clone())
    };
    let (plain, steps, _) = run(None);
    let (guessed, fewer, stats) = run(Some(Guessing { tokens: 4, longest: 3, shortest: 1 }));
    assert_eq!(plain, guessed);
    assert!(fewer < steps && stats.accepted_tokens > 0, "{fewer} of {steps} steps");
    assert_eq!(steps - fewer, stats.accepted_tokens as usize, "each right guess is a step less");
    assert!(stats.draft_tokens >= stats.accepted_tokens && stats.drafts > 0);
}

#[test]
fn a_stop_string_across_tokens_ends_an_answer_and_is_left_out() {
    let text = alone(&request(&[1, 2, 3], 30)).answers[0].text.clone();
    let stop: String = text.chars().skip(4).take(3).collect();
    let cut = text.find(&stop).expect("it is there");
    let mut wanted = request(&[1, 2, 3], 30);
    wanted.stop.strings = vec![stop.clone()];
    let answer = &alone(&wanted).answers[0];
    assert_eq!((answer.text.as_str(), &answer.reason), (&text[..cut], &Some(FinishReason::StopString(stop.clone()))));
    wanted.stop.include_in_output = true;
    assert_eq!(alone(&wanted).answers[0].text, text[..cut + stop.len()]);
}

#[test]
fn stop_tokens_end_an_answer_but_not_before_its_least_length() {
    let free = alone(&request(&[1, 2, 3], 30)).answers[0].ids.clone();
    let place = 5;
    let mut wanted = request(&[1, 2, 3], 30);
    wanted.stop.tokens = vec![free[place]];
    let first = free.iter().position(|id| *id == free[place]).expect("it is there");
    let answer = alone(&wanted).answers.remove(0);
    assert_eq!((&answer.ids[..], answer.reason), (&free[..=first], Some(FinishReason::Stop)));
    assert_eq!(answer.text, Words::new().decode(&free[..first]), "its text is left out");
    wanted.min_tokens = 12;
    let answer = alone(&wanted).answers.remove(0);
    assert!(!answer.ids[..12].contains(&free[place]), "{:?}", answer.ids);
}

#[test]
fn an_answer_matches_its_constraint_whatever_the_model_likes() {
    let settings = Settings { guessing: Some(Guessing { tokens: 3, longest: 2, shortest: 1 }), ..Settings::default() };
    let mut env = Env::new(shape(16, 3), Settings { prefix_cache: false, ..settings });
    let regex = Constraint::Regex("(ab|cd){8}e".to_owned());
    let schema = serde_json::json!({ "type": "object", "properties": { "a": { "type": "boolean" }, "b": { "enum": ["ae", "be"] } },
        "required": ["a", "b"], "additionalProperties": false });
    let constrained = |constraint: Constraint, seed| Request {
        constraint: Some(constraint),
        sampling: warm(seed),
        ..request(&[1, 2], 40)
    };
    let clients: Vec<usize> = (0..4).map(|seed| env.submit(constrained(regex.clone(), seed))).collect();
    let json: Vec<usize> =
        (0..4).map(|seed| env.submit(constrained(Constraint::JsonSchema(schema.clone()), seed))).collect();
    env.run();
    assert!(env.engine.stats().preemptions > 0, "they don't fit together");
    for client in clients {
        let answer = env.heard(client).answers.remove(0);
        let pairs: Vec<&str> =
            answer.text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ascii")).collect();
        assert!(pairs.len() == 9 && pairs[..8].iter().all(|pair| ["ab", "cd"].contains(pair)) && pairs[8] == "e");
        assert_eq!(answer.reason, Some(FinishReason::Stop), "where the grammar ends, without an end token");
    }
    for client in json {
        let answer = env.heard(client).answers.remove(0);
        // Space between is free, and may take all the tokens there are.
        if answer.reason == Some(FinishReason::Stop) {
            let value: serde_json::Value = serde_json::from_str(&answer.text).expect("JSON");
            assert!(value["a"].is_boolean() && (value["b"] == "ae" || value["b"] == "be"), "{value}");
        }
    }
}

#[test]
fn each_adapter_answers_for_itself_in_one_batch() {
    let mut env = Env::new(shape(60, 4), Settings::default());
    let (released, log) = channel();
    for id in [4, 7] {
        let released = released.clone();
        let release = Box::new(move |id| released.send(id).expect("a reader"));
        env.engine.admission().adapters().add(&format!("a{id}"), AdapterId(id), release).expect("new");
    }
    let prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    let of = |adapter| Request { adapter, ..request(&prompt, 8) };
    let adapters = [None, Some(AdapterId(4)), Some(AdapterId(7))];
    let clients = adapters.map(|adapter| env.submit(of(adapter)));
    env.step();
    assert_eq!(tokens(&env), [27], "they share nothing of the cache, and a step");
    env.engine.admission().adapters().remove(AdapterId(4)).expect("it is there");
    assert!(log.try_recv().is_err(), "its request still runs");
    let error = env.try_submit(of(Some(AdapterId(4))), None).expect_err("it is leaving");
    assert_eq!(error.to_string(), "model: adapter 4 is not loaded");
    env.run();
    assert_eq!(log.try_iter().collect::<Vec<_>>(), [AdapterId(4)]);
    for (client, adapter) in clients.into_iter().zip(adapters) {
        assert_eq!(env.ids(client), by_hand(&prompt, adapter, width(), 8));
    }
}

#[test]
fn of_a_prompt_alone_the_log_probabilities_can_be_had() {
    let prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    let settings = Settings { step_tokens: 4, sequences: 4, ..Settings::default() };
    let mut env = Env::new(shape(40, 2), settings);
    // It is in the cache already, which must not matter.
    env.submit(request(&prompt, 3));
    env.run();
    let client = env.submit(Request { prompt_logprobs: Some(2), ..request(&prompt, 0) });
    env.run();
    let heard = env.heard(client);
    let logprobs = heard.prompt.expect("a prompt");
    assert_eq!(logprobs.iter().map(|logprobs| logprobs.chosen.id).collect::<Vec<_>>(), prompt[1..]);
    for (place, logprobs) in logprobs.iter().enumerate() {
        let likeliest = by_hand(&prompt[..=place], None, width(), 1)[0];
        assert_eq!((logprobs.top.len(), logprobs.top[0].id), (2, likeliest));
        assert_eq!(logprobs.chosen.rank == 1, logprobs.chosen.id == likeliest);
    }
    assert_eq!((heard.answers[0].ids.len(), &heard.answers[0].reason), (0, &Some(FinishReason::Length)));
}

#[test]
fn without_a_limit_an_answer_goes_to_the_end_of_what_fits() {
    let mut env = Env::new(shape(10, 4), Settings::default());
    let client = env.submit(Request { max_tokens: None, ..request(&[1, 2, 3], 0) });
    env.run();
    assert_eq!(env.ids(client).len(), 37);
    assert_eq!(env.heard(client).answers[0].reason, Some(FinishReason::Length));
}

#[test]
fn what_cannot_be_answered_is_refused_with_what_would_work() {
    let settings = Settings { sequences: 4, waiting: 1, ..Settings::default() };
    let mut env = Env::new(shape(10, 4), settings);
    let good = || request(&[1], 3);
    let sampled = |change: fn(&mut Sampling)| {
        let mut request = good();
        change(&mut request.sampling);
        request
    };
    let refused = [
        (request(&[1; 30], 11), "30 prompt tokens and 11 answer tokens are more than the 40 that fit"),
        (
            request(&[1], usize::MAX),
            "1 prompt tokens and 18446744073709551615 answer tokens are more than the 40 that fit",
        ),
        (
            Request { max_tokens: None, ..request(&[1; 40], 0) },
            "40 prompt tokens and 1 answer tokens are more than the 40 that fit",
        ),
        (request(&[], 3), "prompt: has no tokens; one or more works"),
        (request(&[1, 999], 3), "prompt: token 999 is none of the model's 46"),
        (Request { choices: 0, ..good() }, "n: 0 is out of range; 1 to 4 works"),
        (Request { best_of: 9, ..good() }, "best_of: 9 is out of range; n, 1, to 4 works"),
        (Request { min_tokens: 4, ..good() }, "min_tokens: 4 is more than max_tokens, 3"),
        (sampled(|sampling| sampling.temperature = f32::NAN), "temperature: NaN is out of range; 0 or more works"),
        (sampled(|sampling| sampling.top_p = 0.0), "top_p: 0 is out of range; more than 0, up to 1, works"),
        (sampled(|sampling| sampling.presence_penalty = 3.0), "presence_penalty: 3 is out of range; -2 to 2 works"),
        (
            sampled(|sampling| _ = sampling.logit_bias.insert(1, 101.0)),
            "logit_bias: 101 is out of range; -100 to 100 works",
        ),
        (Request { adapter: Some(AdapterId(3)), ..good() }, "model: adapter 3 is not loaded"),
    ];
    for (request, words) in refused {
        assert_eq!(env.try_submit(request, None).map_err(|error| error.to_string()), Err(words.to_owned()));
    }
    env.submit(good());
    assert_eq!(env.try_submit(good(), None), Err(RequestError::Busy { waiting: 1 }));
    env.step();
    env.submit(good());
    env.run();
}

#[test]
fn bad_settings_are_refused_all_at_once() {
    let model = Box::new(fake::Model::new(shape(4, 4)));
    let guessing = Some(Guessing { tokens: 0, longest: 1, shortest: 2 });
    let settings = Settings { step_tokens: 3, sequences: 8, guessing, ..Settings::default() };
    let error =
        mloc_engine::engine::Engine::new(model, std::sync::Arc::new(Words::new()), settings).err().expect("bad");
    assert_eq!(
        error.to_string(),
        "step_tokens is 3; 8, as many as sequences, or more works; guessing.tokens is 0; 1 or more works; \
         guessing.longest is less than guessing.shortest"
    );
}

#[test]
fn who_goes_away_is_no_longer_computed() {
    let mut env = Env::new(shape(40, 4), Settings::default());
    let gone = env.try_submit(request(&[1, 2, 3], 30), Some(4)).expect("it fits");
    let stays = env.submit(request(&[1, 2, 4], 8));
    let back = env.submit(request(&[1, 2, 5], 30));
    (0..3).for_each(|_| env.step());
    env.cancel(back);
    env.run();
    // The prompt and three tokens.
    assert_eq!(env.ids(gone).len(), 3);
    assert_eq!(env.heard(back).answers[0].reason, Some(FinishReason::Cancelled));
    assert_eq!(env.heard(back).usage.expect("done").completion_tokens, 3);
    assert_eq!(env.ids(stays), by_hand(&[1, 2, 4], None, width(), 8));
    assert_eq!((env.engine.stats().endings.abort, env.engine.stats().endings.length), (2, 1));
}

#[test]
fn a_step_that_finds_no_memory_is_tried_again_smaller() {
    let settings = Settings { step_tokens: 32, sequences: 4, ..Settings::default() };
    let mut env = Env::new(shape(40, 4), settings);
    env.log.lock().expect("no panic").memory = Some(5);
    let client = env.submit(request(&[7; 30], 4));
    env.run();
    assert_eq!(tokens(&env)[..7], [3, 3, 3, 3, 3, 3, 3]);
    assert_eq!((env.engine.stats().out_of_memory, env.engine.stats().step_tokens_limit), (3, 3));
    assert_eq!(env.ids(client), by_hand(&[7; 30], None, width(), 4));
    // Memory is there again: after some hundred steps so are large ones.
    env.log.lock().expect("no panic").memory = None;
    (0..12).for_each(|_| _ = env.submit(request(&[7; 30], 120)));
    env.run();
    assert!(env.engine.stats().step_tokens_limit > 3);
}

#[test]
fn what_finds_no_memory_at_all_fails_and_the_others_go_on() {
    let mut env = Env::new(shape(40, 4), Settings::default());
    env.log.lock().expect("no panic").poison = Some(45);
    let bad = env.submit(request(&[1, 45], 4));
    let good = env.submit(request(&[1, 2], 4));
    env.run();
    let error = env.heard(bad).failed.expect("it can't be computed");
    assert!(matches!(error, RequestError::Forward(ForwardError::OutOfMemory { tokens: 1, .. })), "{error}");
    assert_eq!(env.ids(good), by_hand(&[1, 2], None, width(), 4));
}

#[test]
fn tokens_and_steps_are_counted() {
    let mut env = Env::new(shape(40, 4), Settings::default());
    env.submit(request(&[1, 2, 3], 5));
    env.run();
    let stats = env.engine.stats();
    // The prompt with the first token's step, then one more for each other token.
    assert_eq!((stats.prompt_tokens, stats.generation_tokens, stats.steps, stats.step_tokens), (3, 5, 5, 7));
}
