//! A writer of small GGUF files for tests.

/// Collects metadata and tensors and lays them out as a GGUF file.
#[derive(Default)]
pub(crate) struct GgufWriter {
    metadata: Vec<u8>,
    metadata_count: u64,
    directory: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl GgufWriter {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn entry(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.metadata_count += 1;
        push_text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        &mut self.metadata
    }

    pub(crate) fn uint(&mut self, key: &str, value: u32) {
        self.entry(key, 4).extend(value.to_le_bytes());
    }

    pub(crate) fn float(&mut self, key: &str, value: f32) {
        self.entry(key, 6).extend(value.to_le_bytes());
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) {
        self.entry(key, 7).push(u8::from(value));
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) {
        push_text(self.entry(key, 8), value);
    }

    fn array(&mut self, key: &str, element: u32, len: usize) -> &mut Vec<u8> {
        let out = self.entry(key, 9);
        out.extend(element.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
        out
    }

    pub(crate) fn texts<S: AsRef<str>>(&mut self, key: &str, values: &[S]) {
        let out = self.array(key, 8, values.len());
        values.iter().for_each(|v| push_text(out, v.as_ref()));
    }

    pub(crate) fn ints(&mut self, key: &str, values: &[i32]) {
        let out = self.array(key, 5, values.len());
        values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    }

    pub(crate) fn floats(&mut self, key: &str, values: &[f32]) {
        let out = self.array(key, 6, values.len());
        values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    }

    /// `shape` is outermost first; the file has it reversed.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[u64], kind: u32, bytes: Vec<u8>) {
        self.tensor_count += 1;
        // Padding goes before a tensor and not after it: a file cut by one byte then lacks a byte of the last one.
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        push_text(&mut self.directory, name);
        self.directory.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|d| self.directory.extend(d.to_le_bytes()));
        self.directory.extend(kind.to_le_bytes());
        self.directory.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
    }

    pub(crate) fn f32_tensor(&mut self, name: &str, shape: &[u64], values: &[f32]) {
        self.tensor(name, shape, 0, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }

    pub(crate) fn bytes(&self, version: u32) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(version.to_le_bytes());
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.metadata_count.to_le_bytes());
        out.extend(&self.metadata);
        out.extend(&self.directory);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}
