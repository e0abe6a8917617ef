//! The rules of `fmt`, one test each.

use super::*;
use proptest::prelude::*;

#[test]
fn spacing_becomes_one_and_comments_stay() {
    let text = "  # head\nname=\"a\"   # why\n   module  =   'a.wasm'\n\n\n\n[limits]   # mine\n  memory=\"64MiB\"\nqueue = 1\nretries={a=1,b=2}\n# tail";
    let out = fmt(text).unwrap();
    assert_eq!(
        out,
        "# head\nname = \"a\"   # why\nmodule = 'a.wasm'\n\n[limits]   # mine\nmemory = \"64MiB\"\nqueue = 1\nretries = { a = 1, b = 2 }\n# tail\n"
    );
    assert_eq!(fmt(&out).unwrap(), out);
}

#[test]
fn an_empty_line_stands_before_each_table_and_its_comment() {
    let text = "[a]\nx = 1\n# of b\n  [b]\n[b.c]\n[[d]]\n\n\n[[d]]\n";
    let out = fmt(text).unwrap();
    assert_eq!(out, "[a]\nx = 1\n\n# of b\n[b]\n\n[b.c]\n\n[[d]]\n\n[[d]]\n");
    assert_eq!(fmt(&out).unwrap(), out);
}

#[test]
fn texts_of_several_lines_are_content() {
    let text = "a = \"\"\"\n  x   \n\n\n\n  y\n\"\"\"\n";
    assert_eq!(fmt(text).unwrap(), text);
}

#[test]
fn dotted_keys_arrays_and_empty_files_are_kept() {
    for text in [
        "limits.memory = \"1MiB\"\n",
        "a = [\n  1,\n  2, # two\n]\n",
        "[[route]]\npath = \"/\"\n\n[[route]]\npath = \"/x\"\n",
    ] {
        assert_eq!(fmt(text).unwrap(), text);
    }
    assert_eq!(fmt("").unwrap(), "");
    assert_eq!(fmt("\n\n").unwrap(), "");
}

#[test]
fn what_is_not_toml_is_refused_with_its_place() {
    let problems = fmt("a = 1\nb =").unwrap_err();
    assert_eq!(
        (problems[0].code, problems[0].position().map(|p| p.0)),
        (Code::Syntax, Some(2))
    );
}

proptest! {
    #[test]
    fn formatting_twice_is_formatting_once_and_never_changes_the_meaning(
        lines in prop::collection::vec(
            prop::sample::select(vec![
                "a=1", "  b = \"x\"", "c.d=[1,2 ,3]", "\n\n", "# note", "   # in", "[t]", "[t.u]  # c", "[[l]]", "e={x=1}", "f='''\n \n'''",
                "g = 1 # z  ", "\"k k\" = 2", "[ s ]", "h=[\n1, # one\n2]", "\r\n",
            ]),
            0..20,
        )
    ) {
        let text = lines.join("\n");
        if let Ok(out) = fmt(&text) {
            prop_assert!(same(&out, &text), "{text:?} -> {out:?}");
            prop_assert_eq!(fmt(&out).unwrap(), out);
        }
    }

    #[test]
    fn no_text_panics(text in "[ -~\n\t]{0,60}") {
        let _ = fmt(&text);
        let _ = crate::config::set(&text, &[(text.clone(), text.clone()), ("a.b".into(), text.clone())]);
    }
}
