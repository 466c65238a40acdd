//! Usage rows summed for a question: who held which GPUs for how long. Sums are integers; hours come last.

use std::collections::BTreeMap;

use time::{Date, Month};

use super::state::{Ledger, TaskEnd};
use crate::time::Millis;

const DAY_MS: u64 = 86_400_000;
const HOUR_MS: f64 = 3_600_000.0;

/// Which usage is asked for. `None` leaves a side open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Of this owner.
    pub user: Option<String>,
    /// Of this project.
    pub project: Option<String>,
    /// From this moment on.
    pub from: Option<Millis>,
    /// Up to this moment, which is outside.
    pub until: Option<Millis>,
}

/// A question that cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// A date that is none.
    #[error("{parameter}: `{found}` is no day: expected YYYY-MM-DD (UTC), such as 2025-09-01")]
    Date {
        /// Which parameter.
        parameter: &'static str,
        /// What was given.
        found: String,
    },
    /// The range is empty.
    #[error("start_date {start} is after end_date {end}: both days are included")]
    Order {
        /// First day.
        start: String,
        /// Last day.
        end: String,
    },
}

/// The answer. Hours are floats here and nowhere before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Hours × GPUs over every attempt, failed and lost ones included.
    pub total_gpu_hours: f64,
    /// Tasks that completed inside the range.
    pub total_tasks_completed: u64,
    /// GPU-hours by type.
    pub breakdown_by_gpu: BTreeMap<String, f64>,
    /// Core-hours held by attempts without a GPU.
    pub total_cpu_core_hours: f64,
}

/// The sums behind [`Stats`], exact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Milliseconds × GPUs by type.
    pub gpu_ms: BTreeMap<String, u128>,
    /// Milliseconds × thousandths of a core, of attempts without a GPU.
    pub cpu_milli_ms: u128,
}

impl Query {
    /// Reads what a client gave. Dates are UTC days, both included.
    ///
    /// # Errors
    /// When a date is none, or the range is empty.
    pub fn parse(
        user: Option<&str>,
        project: Option<&str>,
        start_date: Option<&str>,
        end_date: Option<&str>,
    ) -> Result<Self, BadQuery> {
        let from = start_date.map(|text| day("start_date", text)).transpose()?;
        let last = end_date.map(|text| day("end_date", text)).transpose()?;
        if let (Some(from), Some(last)) = (from, last)
            && from > last
        {
            let (start, end) = (start_date.unwrap_or_default().to_owned(), end_date.unwrap_or_default().to_owned());
            return Err(BadQuery::Order { start, end });
        }
        let until = last.map(|last| Millis(last.0 + DAY_MS));
        Ok(Self { user: user.map(str::to_owned), project: project.map(str::to_owned), from, until })
    }

    fn asks_for(&self, owner: &str, of_project: &str) -> bool {
        self.user.as_deref().is_none_or(|user| user == owner)
            && self.project.as_deref().is_none_or(|project| project == of_project)
    }

    /// Milliseconds of `start..end` inside the range.
    fn part_inside(&self, start: Millis, end: Millis) -> u64 {
        let end = self.until.map_or(end, |until| end.min(until));
        end.since(self.from.map_or(start, |from| start.max(from)))
    }

    fn contains(&self, at: Millis) -> bool {
        self.from.is_none_or(|from| at >= from) && self.until.is_none_or(|until| at < until)
    }
}

fn day(parameter: &'static str, text: &str) -> Result<Millis, BadQuery> {
    let bad = || BadQuery::Date { parameter, found: text.to_owned() };
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts[..] else { return Err(bad()) };
    if (year.len(), month.len(), day.len()) != (4, 2, 2) || !text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        return Err(bad());
    }
    let month: u8 = month.parse().map_err(|_| bad())?;
    let month = Month::try_from(month).map_err(|_| bad())?;
    let year = year.parse().map_err(|_| bad())?;
    let date = Date::from_calendar_date(year, month, day.parse().map_err(|_| bad())?).map_err(|_| bad())?;
    let days = u64::try_from(date.to_julian_day() - 2_440_588).map_err(|_| bad())?;
    Ok(Millis(days * DAY_MS))
}

/// Sums the rows a query asks for; rows of running attempts count up to `now`.
pub fn sums(ledger: &Ledger, query: &Query, now: Millis) -> Sums {
    let mut sums = Sums::default();
    for row in ledger.usage.values().filter(|row| query.asks_for(&row.owner, &row.project)) {
        let held_ms = u128::from(query.part_inside(row.start, row.end.unwrap_or(now).max(row.start)));
        if row.gpu_count > 0 {
            if held_ms > 0 {
                *sums.gpu_ms.entry(row.gpu_kind.clone()).or_default() += held_ms * u128::from(row.gpu_count);
            }
        } else {
            sums.cpu_milli_ms += held_ms * u128::from(row.cpu_millis);
        }
    }
    sums
}

/// What a query comes to at `now`.
pub fn stats(ledger: &Ledger, query: &Query, now: Millis) -> Stats {
    let sums = sums(ledger, query, now);
    let completed = ledger.tasks.values().filter(|task| {
        let metadata = &task.spec.metadata;
        query.asks_for(&metadata.owner, &metadata.project)
            && matches!(&task.ended, Some(TaskEnd::Completed { at, .. }) if query.contains(*at))
    });
    Stats {
        total_gpu_hours: sums.gpu_ms.values().sum::<u128>() as f64 / HOUR_MS,
        total_tasks_completed: completed.count() as u64,
        breakdown_by_gpu: sums.gpu_ms.iter().map(|(kind, ms)| (kind.clone(), *ms as f64 / HOUR_MS)).collect(),
        total_cpu_core_hours: sums.cpu_milli_ms as f64 / HOUR_MS / 1000.0,
    }
}
