//! The command line without a node: what it says and the exit code it ends with. (Building this builds the binary that
//! the end-to-end cases start.)

use std::process::{Command, Output};

fn mloc(args: &[&str]) -> Output {
    // Port 1 answers nobody.
    let mut command = Command::new(env!("CARGO_BIN_EXE_mloc"));
    command.args(args).env("MLOC_NODE", "127.0.0.1:1").output().expect("mloc starts")
}

#[test]
fn a_node_that_does_not_answer_is_exit_code_4_and_the_text_says_how_to_name_another() {
    let ran = mloc(&["tasks"]);
    assert_eq!(ran.status.code(), Some(4));
    let text = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(text.contains("127.0.0.1:1") && text.contains("MLOC_NODE"), "{text}");
}

#[test]
fn a_wrong_file_is_exit_code_2_before_anything_is_asked() {
    assert_eq!(mloc(&["submit", "/no/such/file.yaml"]).status.code(), Some(2));
    assert_eq!(mloc(&["frobnicate"]).status.code(), Some(2));
}
