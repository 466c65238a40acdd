//! The one who holds a shard's files and their copies alike: after a shard began anew it takes its documents from the shard
//! that keeps copies, and after that one began anew it gives them to it. A shard of a newer version takes its documents from
//! the shards of the older one, for as long as there are any.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::http::Method;
use tokio_util::sync::CancellationToken;

use super::{App, Call, NoReply, Shared, To, copies};
use crate::service::{Stamp, digest};

/// Between two looks at whether all documents that were taken are indexed.
const LOOK: Duration = Duration::from_millis(100);
/// Between two comparisons with an older version, which is written to until it stops.
const QUICK: Duration = Duration::from_millis(500);

/// Compares with the shard that keeps copies and with an older version, now and so often, and gives and takes what differs.
/// `first`: nobody was this shard before, so that nobody has copies for it. Returns when it is told to stop.
pub async fn keep(app: Arc<App>, first: bool, every: Duration, stop: CancellationToken) {
    let mut said = String::new();
    loop {
        let compared = tokio::select! { biased;
            () = stop.cancelled() => return,
            compared = compare(&app, first) => compared,
        };
        let mut pause = every;
        match compared {
            Ok(older) if app.is_whole() => {
                said.clear();
                pause = if older { QUICK.min(every) } else { every };
            }
            // What it reads of a folder is no more than any version has at its beginning.
            Ok(older) if (first && !older) || app.service.waiting() == 0 => {
                said.clear();
                match app.service.set_whole(true) {
                    Ok(()) => app.becomes_whole(),
                    Err(error) => tracing::error!(%error, "it can't be said that the shard is whole"),
                }
                pause = LOOK.min(every);
            }
            Ok(_) => pause = LOOK.min(every),
            Err(why) => {
                if !app.is_whole() {
                    pause = QUICK.min(every);
                }
                if why != said {
                    tracing::warn!(why, "files and their copies may differ for now");
                    said = why;
                }
            }
        }
        tokio::select! { biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One comparison with everybody: whether there is an older version. `Err`: why something may differ still.
async fn compare(app: &Shared, first: bool) -> Result<bool, String> {
    let older = take_over(app).await?;
    if let Some(keeper) = app.service.settings().sharding.keeper()
        && (app.is_whole() || !first)
    {
        // In vain: then it answers with what it has, and says so.
        agree(app, keeper).await.inspect_err(|_| app.has_tried())?;
    }
    Ok(older)
}

fn is_older(one: Option<&Stamp>, other: Option<&Stamp>) -> bool {
    one.map(|(at, _)| at) < other.map(|(at, _)| at)
}

/// Takes what belongs here from every shard of an older version; whether there was one.
async fn take_over(app: &Shared) -> Result<bool, String> {
    let sharding = app.service.settings().sharding;
    let call = Call::new(Method::GET, "shard/handover");
    let call = call.with("index", sharding.index.to_string()).with("count", sharding.count.to_string());
    for number in 0.. {
        let from = To::Older(number);
        let answer = match app.ask(from, call.clone()).await {
            Ok(reply) => reply.json()?,
            Err(NoReply::Nobody(_)) => return Ok(number > 0),
            Err(NoReply::Failed(why)) => return Err(format!("an older version: {why}")),
        };
        for (id, stamp) in copies::stamps(answer)?.unwrap_or_default() {
            let _turn = app.turn(&id).lock().await;
            if is_older(app.service.stamp(&id).as_ref(), Some(&stamp)) {
                copies::fetch(app, from, &id).await.map_err(|why| format!("{id} of an older version: {why}"))?;
            }
        }
    }
    Ok(true)
}

/// One comparison with the shard that keeps copies. `Err`: why they may differ still.
async fn agree(app: &Shared, keeper: u32) -> Result<(), String> {
    let sharding = app.service.settings().sharding;
    let ours = app.service.stamps_of(sharding.index, sharding.count);
    let call = Call::new(Method::GET, "shard/copies").with("of", sharding.index.to_string());
    let answer = app.ask(To::Shard(keeper), call.with("digest", digest(&ours))).await;
    let answer = answer.map_err(|error| error.to_string())?.json()?;
    let began_anew = answer["whole"] == false;
    if began_anew && !app.is_whole() {
        tracing::error!(keeper, "this shard and its copies began anew at once: what came over HTTP may be lost");
    }
    let Some(theirs) = copies::stamps(answer)? else { return Ok(()) };
    let mut left = Vec::new();
    for id in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        let _turn = app.turn(id).lock().await;
        let (here, there) = (app.service.stamp(id), theirs.get(id));
        let done = if is_older(here.as_ref(), there) {
            copies::fetch(app, To::Shard(keeper), id).await
        } else if is_older(there, here.as_ref()) {
            copies::tell(app, keeper, id).await
        } else {
            Ok(())
        };
        left.extend(done.err().map(|why| format!("{id}: {why}")));
    }
    match left.as_slice() {
        [] => app.service.forget_gone((app.now)()).map_err(|error| error.to_string()),
        [first, rest @ ..] => Err(format!("{first} (and {} more)", rest.len())),
    }
}
