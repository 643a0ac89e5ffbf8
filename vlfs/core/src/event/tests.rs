use super::*;

#[test]
fn every_kind_is_listed() {
    let source = include_str!("../event.rs");
    let from = source.find("pub fn kind(&self)").expect("the function");
    let body = &source[from..source[from..].find("\n    }\n").expect("its end") + from];
    let named: Vec<_> =
        body.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(named, Event::KINDS);
}

#[test]
fn an_event_is_one_printable_line() {
    let reason = "x\u{1b}[31m\nforged line\u{202e}".to_owned();
    let event = Event::Paused { composition: "web".parse().expect("valid"), reason };
    assert_eq!(event.to_string(), "web: paused: x\\u{1b}[31m\\nforged line\\u{202e}");
}
