//! Whether the tags of a text are balanced: enough of a parser to find text that was not escaped.

/// Elements without an end.
const VOID: [&str; 2] = ["meta", "!DOCTYPE"];

/// Panics with the place of the first tag that has no partner.
pub(super) fn assert_balanced(text: &str) {
    let mut open = Vec::new();
    let mut rest = text;
    while let Some((_, tag)) = rest.split_once('<') {
        let end = end_of_tag(tag).unwrap_or_else(|| panic!("a tag without an end: {tag:.80}"));
        let inside = &tag[..end];
        let name = inside.trim_start_matches('/');
        let name = name.split([' ', '/']).next().unwrap_or_default();
        if inside.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "before {:.80}", &tag[end..]);
        } else if !inside.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
        rest = &tag[end + 1..];
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

/// Where the tag ends; a `>` in a quoted attribute does not end it.
fn end_of_tag(tag: &str) -> Option<usize> {
    let mut is_quoted = false;
    tag.find(|character| {
        is_quoted ^= character == '"';
        character == '>' && !is_quoted
    })
}

#[test]
fn it_finds_what_is_not_balanced() {
    assert_balanced("<!DOCTYPE html><meta a=\"x>y\"><p><b/>1 &lt; 2</p>");
    for wrong in ["<p>", "<p></b>", "</p>", "<a<"] {
        let result = std::panic::catch_unwind(|| assert_balanced(wrong));
        assert!(result.is_err(), "{wrong}");
    }
}
