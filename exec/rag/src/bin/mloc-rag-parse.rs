//! What [`mloc_rag::parse::child::parse_in_child`] starts where no other program leads to `child_main`. With a file's name:
//! shows what is read out of it.

use std::{io, path::Path, process::ExitCode};

use mloc_rag::parse::{Bounds, Source, child::child_main, parse};

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        return child_main(io::stdin(), io::stdout());
    };
    let source = Source { name: path.clone(), ..Source::default() };
    let read = std::fs::read(Path::new(&path)).map_err(|error| error.to_string());
    match read.and_then(|bytes| parse(&source, &bytes, &Bounds::default()).map_err(|error| error.to_string())) {
        Ok(document) => {
            for block in &document.blocks {
                let (page, headings) = (block.page.unwrap_or(0), block.headings.join(" > "));
                println!("-- {:?} page {page} [{headings}]\n{}", block.kind, block.span.of(&document.text));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{path}: {error}");
            ExitCode::FAILURE
        }
    }
}
