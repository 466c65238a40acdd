//! Which losses a mesh survives, said before they happen: as a join prints it, and `mloc nodes` and /mesh.
//!
//! A majority of the voters must answer for anything to be accepted or placed. A voter that is away is one thing, its
//! ledger lost for good another: the first stops the mesh until it is back, the second can end it.

/// A member that is not revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its name, for people.
    pub name: String,
    /// Whether it votes.
    pub votes: bool,
    /// Whether it is heard.
    pub alive: bool,
}

/// What a mesh survives right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survival {
    /// How many voters may fail without the mesh stopping to take tasks.
    pub failures: usize,
    /// The same and what each loss takes with it, for people, in a few lines.
    pub text: String,
}

/// What these members survive.
pub fn survival(members: &[Standing]) -> Survival {
    let voters: Vec<&Standing> = members.iter().filter(|m| m.votes).collect();
    let names = |such: &dyn Fn(&Standing) -> bool| {
        voters.iter().filter(|v| such(v)).map(|v| v.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (all, here, silent) = (names(&|_| true), names(&|v| v.alive), names(&|v| !v.alive));
    let alive = voters.iter().filter(|v| v.alive).count();
    let majority = voters.len() / 2 + 1;
    let failures = alive.saturating_sub(majority);
    let mut text = match failures {
        1 => "survives 1 failure of a voter now".to_owned(),
        n => format!("survives {n} failures of voters now"),
    };
    let mut add = |more: &str| text.push_str(more);
    match (members.len(), voters.len()) {
        (_, 0) => add(": nobody votes yet"),
        (1, _) => add(": one node"),
        (2, 1) => add(": two nodes have one voter, for two voters would be worse than one"),
        (_, 1) => add(": one voter so far; more are promoted when they have been up for a while"),
        _ if silent.is_empty() => {}
        _ => add(&format!(": {silent} silent")),
    }
    match voters.len() {
        0 => {}
        1 => add(&format!(
            "\nlosing {all}: nothing is accepted or placed until it is back, running tasks go on; losing its data: the \
             ledger is lost, with every task, usage row and member"
        )),
        _ if alive < majority => add(&format!(
            "\n{} of {silent} must come back, with their data: until then nothing is accepted or placed, running tasks go \
             on; losing it for good: the ledger is lost, with every task, usage row and member",
            majority - alive
        )),
        count => add(&format!(
            "\nlosing any {} of {here}: nothing is accepted or placed until one is back, running tasks go on; losing the \
             data of any {} of {all}: the ledger is lost, with every task, usage row and member",
            failures + 1,
            count - majority + 1
        )),
    }
    if members.len() > voters.len() || voters.len() > 1 {
        add("\nlosing any one node: its attempts go elsewhere after their lease, from their last shared checkpoint");
    }
    match members.len() {
        1 => add("\nhint: two more nodes make it survive a failure"),
        2 => add("\nhint: a third node makes it survive the failure of any one"),
        _ => {}
    }
    Survival { failures, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a+` votes, `a` does not; `a!` is silent.
    fn members(text: &str) -> Vec<Standing> {
        let one = |word: &str| Standing {
            name: word.trim_matches(['+', '!']).to_owned(),
            votes: word.contains('+'),
            alive: !word.contains('!'),
        };
        text.split_whitespace().map(one).collect()
    }

    const ELSEWHERE: &str =
        "\nlosing any one node: its attempts go elsewhere after their lease, from their last shared checkpoint";
    const LEDGER: &str = "the ledger is lost, with every task, usage row and member";

    #[test]
    fn what_each_mesh_survives() {
        let goes_on = "nothing is accepted or placed until it is back, running tasks go on";
        let stops = "nothing is accepted or placed until one is back, running tasks go on";
        let one = format!("\nlosing a: {goes_on}; losing its data: {LEDGER}");
        for (mesh, failures, says) in [
            (
                "a+",
                0,
                format!(
                    "survives 0 failures of voters now: one node{one}\nhint: two more nodes make it survive a failure"
                ),
            ),
            (
                "a+ b",
                0,
                format!(
                    "survives 0 failures of voters now: two nodes have one voter, for two voters would be worse than \
                     one{one}{ELSEWHERE}\nhint: a third node makes it survive the failure of any one"
                ),
            ),
            (
                "a+ b c",
                0,
                format!(
                    "survives 0 failures of voters now: one voter so far; more are promoted when they have been up for \
                     a while{one}{ELSEWHERE}"
                ),
            ),
            (
                "a+ b+ c+",
                1,
                format!(
                    "survives 1 failure of a voter now\nlosing any 2 of a, b, c: {stops}; losing the data of any 2 of a, \
                     b, c: {LEDGER}{ELSEWHERE}"
                ),
            ),
            (
                "a+ b+! c+ d",
                0,
                format!(
                    "survives 0 failures of voters now: b silent\nlosing any 1 of a, c: {stops}; losing the data of any \
                     2 of a, b, c: {LEDGER}{ELSEWHERE}"
                ),
            ),
            (
                "a+ b+! c+!",
                0,
                format!(
                    "survives 0 failures of voters now: b, c silent\n1 of b, c must come back, with their data: until \
                     then nothing is accepted or placed, running tasks go on; losing it for good: {LEDGER}{ELSEWHERE}"
                ),
            ),
            (
                "a+ b+ c+ d+ e+ f g",
                2,
                format!(
                    "survives 2 failures of voters now\nlosing any 3 of a, b, c, d, e: {stops}; losing the data of any 3 \
                     of a, b, c, d, e: {LEDGER}{ELSEWHERE}"
                ),
            ),
            (
                "a+ b+ c+! d+ e+",
                1,
                format!(
                    "survives 1 failure of a voter now: c silent\nlosing any 2 of a, b, d, e: {stops}; losing the data \
                     of any 3 of a, b, c, d, e: {LEDGER}{ELSEWHERE}"
                ),
            ),
        ] {
            assert_eq!(survival(&members(mesh)), Survival { failures, text: says }, "{mesh}");
        }
    }

    /// The words and the number agree with what a majority is: a mesh of any size and any who are silent.
    #[test]
    fn one_more_than_it_survives_is_one_too_many() {
        for voters in 1..=7usize {
            for silent in 0..=voters {
                let standing = |n: usize| Standing { name: format!("n{n}"), votes: true, alive: n >= silent };
                let found = survival(&(0..voters).map(standing).collect::<Vec<_>>()).failures;
                let works = |left: usize| left * 2 > voters;
                let left = voters - silent;
                assert!(found == 0 || works(left - found), "{voters} {silent}");
                assert!(!works(left) || !works(left - found - 1), "{voters} {silent}: it survives more than {found}");
            }
        }
    }
}
