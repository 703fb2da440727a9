//! Numbers of JSON as they are written. A parser makes 64-bit values of them, which loses digits of ids such as
//! 1.0 or 12345678901234567890123; here they become strings before it sees them.

/// A line of valid JSON with every number as a string of the same characters.
pub fn numbers_as_text(line: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(line.len() + 16), line);
    while let Some(start) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let text = rest.starts_with('"');
        let length = if text { string_length(rest) } else { number_length(rest) };
        let quote = if text { "" } else { "\"" };
        out.extend([quote, &rest[..length], quote]);
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// Bytes of the string that `text` begins with, its quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = true; // the first quote ends nothing
    let end = text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 1)
}

fn number_length(text: &str) -> usize {
    text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'))).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_every_digit_and_strings_are_left_alone() {
        for (line, wanted) in [
            (
                r#"{"a":1.0,"b\"2":[-0,1e5,12345678901234567890123]}"#,
                r#"{"a":"1.0","b\"2":["-0","1e5","12345678901234567890123"]}"#,
            ),
            (r#"{"1": "2 \\", "n": null, "t": true} "#, r#"{"1": "2 \\", "n": null, "t": true} "#),
            ("1.50", "\"1.50\""),
            ("\"unfinished \\", "\"unfinished \\"),
        ] {
            assert_eq!(numbers_as_text(line), wanted);
        }
    }
}
