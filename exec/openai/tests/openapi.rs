//! openapi.json is the document that is served, and the document is about what is served.

use std::{fs, path::Path};

#[test]
fn the_file_is_the_document() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let document = serde_json::to_string_pretty(&mloc_openai::openapi::document()).unwrap() + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        fs::write(&file, &document).unwrap();
    }
    let held = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        held == document,
        "openapi.json is not what is served: run this test with UPDATE_OPENAPI=1 and look at the difference"
    );
}

#[test]
fn every_path_is_told_of_by_its_own_words() {
    let document = mloc_openai::openapi::document();
    for (method, path) in mloc_openai::server::paths() {
        let told = &document["paths"][path.replace("{*model}", "{model}")][method.as_str().to_lowercase()];
        assert!(told["summary"].is_string(), "{method} {path}");
        assert_eq!(told["requestBody"].is_object(), method == "POST", "{method} {path}");
    }
}
