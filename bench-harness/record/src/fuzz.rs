//! Entry points for fuzzing, shared by the fuzz targets and the test that replays the corpus. Not a public interface.

use crate::{Reader, to_line};

/// Reads `input` as a results file. Whatever was read must survive being written and read again.
///
/// # Panics
/// When it does not: that is what the fuzzer looks for.
pub fn reader(input: &[u8]) {
    for record in Reader::new(input).flatten() {
        let line = to_line(&record).expect("a record that was read can be written");
        let back = Reader::new(line.as_bytes()).next().expect("one line").expect("own output is readable");
        // Compared as text: a failed sample is NaN, which equals nothing.
        assert_eq!(to_line(&back).expect("a record that was read can be written"), line);
    }
}
