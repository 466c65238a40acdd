//! The user's own program: what is run, and where its code comes from.

use super::Validation;
use crate::task::{
    fields::Typed,
    kind::{TaskType, TaskTypeRow},
    names,
    problem::{At, Problem},
    raw::{RawCode, RawCommand, RawSpec},
    spec::{Code, Command},
};

/// Longest single argument in bytes: the kernel's MAX_ARG_STRLEN, its last byte the end.
const ARGUMENT_MAX: usize = (128 << 10) - 1;
/// What runs a command that is a text; `-e`: a line that fails ends it.
const SHELL: [&str; 2] = ["/bin/sh", "-ec"];

impl Validation<'_> {
    pub(super) fn command(&mut self, spec: &RawSpec, row: Option<&TaskTypeRow>) -> Option<Command> {
        let row = row?;
        if row.task_type != TaskType::Command {
            self.without_a_program(spec, row);
            return None;
        }
        let code = spec.code.as_ref().and_then(|code| self.code(code));
        let Some(command) = &spec.command else {
            let at = spec.at.unwrap_or(At::START);
            let expected = "the program and its arguments, such as `[python3, train.py]`";
            self.problems.push(Problem::new("spec.command", at, "nothing", expected));
            return None;
        };
        Some(Command { argv: self.program(command), code })
    }

    /// The program and its arguments.
    pub(super) fn program(&mut self, command: &RawCommand) -> Vec<String> {
        match command {
            RawCommand::Argv(list) => self.argv(list),
            RawCommand::Shell(lines) if lines.value.trim().is_empty() => {
                self.problems.push(lines.problem("lines for the shell, or a list of the program and its arguments"));
                Vec::new()
            }
            RawCommand::Shell(lines) => {
                self.argument(lines);
                SHELL.into_iter().map(str::to_owned).chain([lines.value.clone()]).collect()
            }
        }
    }

    fn argv(&mut self, list: &Typed<Vec<Typed<String>>>) -> Vec<String> {
        if list.value.first().is_none_or(|program| program.value.is_empty()) {
            let found = if list.value.is_empty() { "an empty list" } else { "an empty name" };
            let expected = "the program first, such as `[python3, train.py]`";
            self.problems.push(Problem::new(&list.path, list.at, found, expected));
        }
        list.value.iter().for_each(|argument| self.argument(argument));
        list.value.iter().map(|argument| argument.value.clone()).collect()
    }

    /// What no kernel takes. (NUL is no text in any value.)
    fn argument(&mut self, argument: &Typed<String>) {
        if argument.value.len() > ARGUMENT_MAX {
            let found = format!("{} bytes", argument.value.len());
            let problem = Problem::new(&argument.path, argument.at, found, format!("at most {ARGUMENT_MAX} bytes"));
            self.problems.push(problem.hint("put it into a file of `code.source`"));
        }
    }

    pub(super) fn code(&mut self, raw: &RawCode) -> Option<Code> {
        let source = self.source(&raw.source);
        let workdir = raw.workdir.as_ref().map(|workdir| self.told(names::path(workdir, false)));
        Some(Code { source: source?, workdir: workdir.flatten() })
    }

    /// Keys of a program in a task of another type.
    fn without_a_program(&mut self, spec: &RawSpec, row: &TaskTypeRow) {
        let command = spec.command.as_ref().map(|command| match command {
            RawCommand::Argv(list) => ("command", list.at),
            RawCommand::Shell(lines) => ("command", lines.at),
        });
        for (name, at) in [command, spec.code.as_ref().map(|code| ("code", code.at))].into_iter().flatten() {
            let expected = format!("no program of your own with {}", row.name);
            let problem = Problem::new(format!("spec.{name}"), at, format!("the key `{name}`"), expected);
            self.problems.push(problem.hint("write `taskType: command`"));
        }
    }
}
