//! JSON texts put together out of parts.

/// Appends a JSON text as it stands on a line: its line ends become spaces. In valid JSON they stand between tokens only,
/// so it means the same.
pub fn push_line(line: &mut Vec<u8>, json: &[u8]) {
    let start = line.len();
    line.extend_from_slice(json);
    // Sets every byte, so that many are done at a time.
    line[start..].iter_mut().for_each(|byte| *byte = if matches!(*byte, b'\r' | b'\n') { b' ' } else { *byte });
}

/// Appends a member to an object that has one already.
pub(super) fn member(text: &mut Vec<u8>, name: &str, value: &str) {
    text.extend_from_slice(b",\"");
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b"\":");
    // Writing a string to a Vec cannot fail.
    let _ = serde_json::to_writer(text, value);
}
