//! What a service is called, how it shows that it is ready, and how many replicas it has.

use super::Validation;
use crate::task::{
    fields::Typed,
    kind::{Kind, TaskTypeRow},
    names,
    problem::{At, Problem, show},
    raw::{RawAutoscale, RawHealth, RawSpec, RawTask, RawUpdate},
    spec::{Adapter, Health, Scale, Service, Timeouts, Update},
};

/// Most replicas, as of `resources.replicas`.
const REPLICAS_MAX: i64 = 1_000;
/// Longest name at the API: models are often called by the path of a repository.
const SERVED_NAME_MAX: usize = 128;
/// What a service has to end what it has begun, when it does not say: longer than most answers take.
const STOP_MS: u64 = 30_000;
/// What a service has to become ready, when it does not say: weights are read, kernels compiled.
const READY_MS: u64 = 600_000;

impl Validation<'_> {
    pub(super) fn timeouts(&mut self, spec: &RawSpec, kind: Option<Kind>) -> Timeouts {
        let mut timeouts = Timeouts {
            run_ms: self.time(&spec.timeout_run, true),
            stop_ms: self.time(&spec.timeout_stop, false),
            ready_ms: self.time(&spec.timeout_ready, true),
            idle_ms: self.time(&spec.timeout_idle, true),
        };
        match kind {
            Some(Kind::ServiceTask) => {
                if let Some(run) = &spec.timeout_run {
                    let hint =
                        "it runs until it is cancelled; `timeouts.idle` takes the replicas of one that nobody asks";
                    self.problems.push(run.problem("no bound on the run of a service").hint(hint));
                }
                timeouts.stop_ms.get_or_insert(STOP_MS);
                timeouts.ready_ms.get_or_insert(READY_MS);
            }
            Some(Kind::TrainingTask) => {
                for text in [&spec.timeout_ready, &spec.timeout_idle].into_iter().flatten() {
                    self.problems.push(of_a_service(&text.path, text.at));
                }
            }
            None => {}
        }
        timeouts
    }

    pub(super) fn service(
        &mut self,
        raw: &RawTask,
        kind: Option<Kind>,
        row: Option<&TaskTypeRow>,
        replicas: u32,
    ) -> Option<Service> {
        let spec = &raw.spec;
        if kind? == Kind::TrainingTask {
            self.without_a_service(spec);
            return None;
        }
        for (path, at) in [
            spec.destination.as_ref().map(|place| (place.path.clone(), place.at)),
            spec.artifacts.first().map(|kind| ("spec.output.artifacts".to_owned(), kind.at)),
            spec.keep.as_ref().map(|keep| (keep.path.clone(), keep.at)),
            spec.checkpoint.as_ref().map(|place| (place.path.clone(), place.at)),
        ]
        .into_iter()
        .flatten()
        {
            let problem = Problem::new(path, at, "a place or choice of files", "nothing to keep of a service");
            self.problems.push(problem.hint("a service answers requests and publishes nothing: leave the key out"));
        }
        let served_name = match &spec.served_name {
            Some(name) => self.told(served_name(name)),
            // Checked there.
            None => raw.metadata.name.as_ref().map(|name| name.value.clone()),
        };
        if let (Some(adapter), Some(served)) =
            (spec.model.as_ref().and_then(|model| model.adapter.as_ref()), &served_name)
            && row.is_some_and(|row| row.task_type.has_engine())
            && served == adapter.name.as_ref().map_or(Adapter::NAME, |name| name.value.as_str())
        {
            let (path, at) = adapter
                .name
                .as_ref()
                .map_or(("spec.model.adapter.name", adapter.at), |name| (name.path.as_str(), name.at));
            let problem = Problem::new(path, at, show(served), "another name than the service's own");
            self.problems.push(problem.hint("it is asked for as `servedName:name`"));
        }
        if let Some(row) = row.filter(|row| row.sharded) {
            self.of_shards(spec, row);
        }
        Some(Service {
            served_name: served_name.unwrap_or_default(),
            health: spec.health.as_ref().map_or_else(Health::default, |health| self.health(health)),
            scale: match &spec.autoscale {
                Some(autoscale) => self.autoscale(autoscale, spec.replicas.as_ref()),
                None => Scale::fixed(replicas),
            },
            update: {
                let mut default = Update::default();
                // A newer version takes over from all shards of the older one, beside it.
                if row.is_some_and(|row| row.sharded) {
                    default.max_surge = replicas.max(1);
                }
                spec.update.as_ref().map_or(default.clone(), |update| self.update(update, default))
            },
        })
    }

    /// Where each replica holds a part, another number of them is another place for nearly every part.
    fn of_shards(&mut self, spec: &RawSpec, row: &TaskTypeRow) {
        if let Some(autoscale) = &spec.autoscale {
            let expected = format!("no `autoscale` with {}, whose replicas are shards of its documents", row.name);
            let problem = Problem::new("spec.autoscale", autoscale.at, "the key `autoscale`", expected);
            self.problems.push(problem.hint(
                "write `resources.replicas`; submitted again with another number it is a newer version, which takes them over",
            ));
        }
        if let Some(idle) = &spec.timeout_idle {
            let text =
                "what came over HTTP is lost when it sleeps: its replicas begin anew, with `dataset.source` alone";
            self.note(&idle.path, idle.at, text);
        }
    }

    fn without_a_service(&mut self, spec: &RawSpec) {
        for (path, at) in [
            spec.served_name.as_ref().map(|name| (name.path.clone(), name.at)),
            spec.health.as_ref().map(|health| ("spec.health".to_owned(), health.at)),
            spec.autoscale.as_ref().map(|autoscale| ("spec.autoscale".to_owned(), autoscale.at)),
            spec.update.as_ref().map(|update| ("spec.update".to_owned(), update.at)),
        ]
        .into_iter()
        .flatten()
        {
            self.problems.push(of_a_service(&path, at));
        }
    }

    fn health(&mut self, raw: &RawHealth) -> Health {
        let default = Health::default();
        if let Some(path) = &raw.path
            && !is_url_path(&path.value)
        {
            let problem = path.problem("the path of a GET, such as `/health`");
            self.problems.push(problem.hint("it begins with `/`, and has no spaces, no host and no `#`"));
        }
        Health {
            path: raw.path.as_ref().map_or(default.path, |path| path.value.clone()),
            every_ms: self.time(&raw.every, true).unwrap_or(default.every_ms),
            timeout_ms: self.time(&raw.timeout, true).unwrap_or(default.timeout_ms),
            failures: self.count(&raw.failures, 1, 1_000).unwrap_or(default.failures),
        }
    }

    fn autoscale(&mut self, raw: &RawAutoscale, replicas: Option<&Typed<i64>>) -> Scale {
        let default = Scale::default();
        if let Some(replicas) = replicas {
            let problem = Problem::new(
                &replicas.path,
                replicas.at,
                format!("`{}`", replicas.value),
                "no `replicas` beside `autoscale`",
            );
            self.problems.push(problem.hint("it begins with `autoscale.min`"));
        }
        // 0 is what `timeouts.idle` is for: by load alone nothing would tell when to begin again.
        let min = self.count(&raw.min, 1, REPLICAS_MAX).unwrap_or(default.min);
        let max = self.count(&raw.max, 1, REPLICAS_MAX).unwrap_or(min);
        if let Some(given) = &raw.max
            && max < min
        {
            let found = format!("`{}`", given.value);
            self.problems.push(Problem::new(&given.path, given.at, found, format!("no less than `min`, {min}")));
        }
        Scale {
            min,
            max,
            queue_depth: self.count(&raw.queue_depth, 1, 1_000_000).unwrap_or(default.queue_depth),
            up_after_ms: self.time(&raw.up_after, false).unwrap_or(default.up_after_ms),
            down_after_ms: self.time(&raw.down_after, false).unwrap_or(default.down_after_ms),
        }
    }

    fn update(&mut self, raw: &RawUpdate, default: Update) -> Update {
        let max_surge = self.count(&raw.max_surge, 0, REPLICAS_MAX).unwrap_or(default.max_surge);
        let max_unavailable = self.count(&raw.max_unavailable, 0, REPLICAS_MAX).unwrap_or(default.max_unavailable);
        if (max_surge, max_unavailable) == (0, 0) {
            let problem = Problem::new("spec.update", raw.at, "`maxSurge: 0` and `maxUnavailable: 0`", "one above 0");
            self.problems.push(problem.hint("with neither one more nor one fewer, no replica can be exchanged"));
        }
        Update { max_surge, max_unavailable }
    }

    /// A number within bounds.
    pub(super) fn count(&mut self, typed: &Option<Typed<i64>>, least: i64, most: i64) -> Option<u32> {
        let typed = typed.as_ref()?;
        if !(least..=most).contains(&typed.value) {
            let found = format!("`{}`", typed.value);
            self.problems.push(Problem::new(&typed.path, typed.at, found, format!("{least} to {most}")));
            return None;
        }
        u32::try_from(typed.value).ok()
    }
}

fn of_a_service(path: &str, at: At) -> Problem {
    let key = path.rsplit('.').next().unwrap_or(path);
    Problem::new(path, at, format!("the key `{key}`"), "no setting of a service in a TrainingTask")
        .hint("write `kind: ServiceTask`, or leave the key out")
}

/// A name at the API: as names are, parts separated by `/`, as models are often called.
fn served_name(typed: &Typed<String>) -> Result<String, Problem> {
    let named = |part: &str| names::name(&typed.with(part.to_owned()), ":", SERVED_NAME_MAX).is_ok();
    if typed.value.len() <= SERVED_NAME_MAX && typed.value.split('/').all(named) {
        return Ok(typed.value.clone());
    }
    let expected = format!("a name of at most {SERVED_NAME_MAX} characters, such as `llama-3` or `org/llama-3`");
    Err(typed.problem(expected))
}

fn is_url_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= 1024 && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
}
