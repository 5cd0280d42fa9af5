//! The places of a JSON object's members in its text, as editing in place needs them.

use std::ops::Range;

/// One member of an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The key, unescaped.
    pub(super) key: String,
    /// Position of the key's opening quote.
    pub(super) start: usize,
    /// Range of the value, without the space around it.
    pub(super) value: Range<usize>,
}

/// The members of the object that `text`, which is valid JSON, consists of.
///
/// Knowing that the text is valid, it is enough to follow strings and brackets: at depth 1 a string
/// is a key or a value, and a colon, comma or closing brace tells which.
pub(super) fn members(text: &str) -> Vec<Member> {
    let mut found = Vec::new();
    let mut depth = 0;
    // The member being read: where its key starts, and where its value may start.
    let (mut key, mut value) = (None, None);
    let mut at = 0;
    while let Some(&byte) = text.as_bytes().get(at) {
        match byte {
            b'"' => {
                let end = string_end(text, at);
                if depth == 1 && key.is_none() {
                    key = Some(at..end);
                }
                at = end;
                continue;
            }
            b':' if depth == 1 => value = Some(at + 1),
            b',' | b'}' if depth == 1 => {
                if let (Some(key), Some(value)) = (key.take(), value.take()) {
                    found.push(member(text, key, value..at));
                }
                depth -= i32::from(byte == b'}');
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    found
}

fn member(text: &str, key: Range<usize>, value: Range<usize>) -> Member {
    let start = key.start;
    // A valid JSON string always parses; were it not one, it would match no key that is asked for.
    let key = serde_json::from_str(&text[key]).unwrap_or_default();
    let inside = &text[value.clone()];
    let first = value.start + inside.len() - inside.trim_start().len();
    Member { key, start, value: first..first + inside.trim().len() }
}

/// One past the closing quote of the string whose opening quote is at `start`.
fn string_end(text: &str, start: usize) -> usize {
    let mut escaped = false;
    for (offset, byte) in text.bytes().enumerate().skip(start + 1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return offset + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_whatever_their_values() {
        let text = r#" {"a":[1,{"x":"}"}] , "b\"\\" : "c:,\\" ,"é":{}, "n":-1e-05
        } "#;
        let found = members(text);
        let pairs: Vec<_> =
            found.iter().map(|m| (m.key.as_str(), &text[m.value.clone()])).collect();
        assert_eq!(
            pairs,
            [("a", r#"[1,{"x":"}"}]"#), (r#"b"\"#, r#""c:,\\""#), ("é", "{}"), ("n", "-1e-05")]
        );
        assert!(found.iter().all(|m| text[m.start..].starts_with('"')));
        assert!(members("{}").is_empty());
    }
}
