//! What a TOML file says, as a list: each key by its path, with its value as text.
//!
//! Two lists compare whatever the file may say, also what is added to the format
//! later. Comments, the order of keys and how a value is written do not count.
//!
//! The tables of an array are told apart by their `name` (of a pin: its `layer`),
//! as in `rollout.ring[canary].soak`, and their order is the array's own value;
//! where they have none, each is a value as a whole.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// The values of each path; more than one only for tables that have no name.
pub type Stated = BTreeMap<String, BTreeSet<String>>;

/// Keys by which the tables of an array are told apart.
const NAMES: [&str; 2] = ["name", "layer"];

/// Lists a file's table.
pub(crate) fn stated(table: &DeTable<'_>) -> Stated {
    let mut all = Stated::new();
    add_table(&mut all, "", table, None);
    all
}

fn add_table(all: &mut Stated, path: &str, table: &DeTable<'_>, but: Option<&str>) {
    for (key, value) in table.iter() {
        let key: &str = key.get_ref();
        if but == Some(key) {
            continue;
        }
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match value.get_ref() {
            DeValue::Table(below) => add_table(all, &path, below, None),
            DeValue::Array(items) if has_tables(items) => add_tables(all, &path, items),
            value => add(all, path, text(value)),
        }
    }
}

fn add(all: &mut Stated, path: String, value: String) {
    all.entry(path).or_default().insert(value);
}

fn has_tables(items: &DeArray<'_>) -> bool {
    items.iter().any(|item| item.get_ref().is_table())
}

fn add_tables(all: &mut Stated, path: &str, items: &DeArray<'_>) {
    let mut order = Vec::new();
    for item in items.iter() {
        let named = item.get_ref().as_table().and_then(|table| Some((name(table)?, table)));
        match named {
            Some(((key, name), table)) => {
                order.push(format!("{name:?}"));
                add_table(all, &format!("{path}[{name}]"), table, Some(key));
            }
            None => add(all, path.to_owned(), text(item.get_ref())),
        }
    }
    if !order.is_empty() {
        add(all, path.to_owned(), format!("[{}]", order.join(", ")));
    }
}

fn name<'t>(table: &'t DeTable<'_>) -> Option<(&'static str, &'t str)> {
    let find = |key: &'static str| Some((key, table.get(key)?.get_ref().as_str()?));
    NAMES.into_iter().find_map(find)
}

fn text(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| text(item.get_ref())).collect();
            format!("[{}]", items.join(", "))
        }
        DeValue::Table(table) => {
            let member = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                let key: &std::borrow::Cow<'_, str> = key.get_ref();
                format!("{key} = {}", text(value.get_ref()))
            };
            // In the order of their keys, not of the file.
            let members: BTreeSet<_> = table.iter().map(member).collect();
            format!("{{ {} }}", members.into_iter().collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Stated {
        let (table, errors) = DeTable::parse_recoverable(text);
        assert!(errors.is_empty(), "{errors:?}");
        stated(table.get_ref())
    }

    #[test]
    fn every_value_has_its_path() {
        let text = "rings = [\"a\", \"b\"]\n[limits]\ntouched-vas = 2\n[[rollout.ring]]\nsoak = \"1h\"\nname = \"canary\"\n\
                    labels = { site = \"vienna\" }\n[[rollout.ring]]\nname = \"all\"\n[[rollout.freeze]]\nto = \"y\"\nfrom = \"x\"\n\
                    [[rollout.freeze]]\nfrom = \"z\"\n[[repository]]\nname = \"main\"\nunsigned = true\n[[pin]]\nlayer = \"base\"\nversion = \"1*\"\n";
        let found = of(text);
        let lines: Vec<_> = found
            .iter()
            .flat_map(|(path, values)| values.iter().map(move |value| format!("{path} = {value}")))
            .collect();
        assert_eq!(
            lines,
            [
                "limits.touched-vas = 2",
                "pin = [\"base\"]",
                "pin[base].version = \"1*\"",
                "repository = [\"main\"]",
                "repository[main].unsigned = true",
                "rings = [\"a\", \"b\"]",
                "rollout.freeze = { from = \"x\", to = \"y\" }",
                "rollout.freeze = { from = \"z\" }",
                "rollout.ring = [\"canary\", \"all\"]",
                "rollout.ring[canary].labels.site = \"vienna\"",
                "rollout.ring[canary].soak = \"1h\"",
            ]
        );
    }

    #[test]
    fn how_it_is_written_does_not_count() {
        assert_eq!(of("# x\n[a]\nb = 'c'\nd = 0x10\n"), of("a = { d = 0x10, b = \"c\" }\n"),);
    }
}
