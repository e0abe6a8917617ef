//! What can be wrong with `[secrets]` beside its texts: a variable that `[env]` fills too, more than a service may have, a name that
//! the node has no secret for.

use super::codes::Code;
use super::diagnostic::{Problem, Source};
use super::fields::Fields;
use super::places::place_of;
use super::read::Reader;
use crate::model::ServiceSpec;

/// Most variables of `[secrets]`: each replica holds all their values.
pub const MAX_SECRETS: usize = 64;

/// Mistakes of one file.
pub(super) fn mistakes(fields: &Fields, reader: &mut Reader) {
    let (env, secrets) = (fields.map("env"), fields.map("secrets"));
    let source = reader.source.clone();
    for variable in secrets.keys().filter(|v| env.contains_key(*v)) {
        let problem = Problem::new(
            Code::VariableTwice,
            format!("variable `{}` is in [env] and in [secrets]", variable.escape_debug()),
        )
        .label("the guest can be given one value")
        .help("remove it from one of the two");
        reader.push(problem.at(&source, place_of(&source, &["secrets", variable])));
    }
    if secrets.len() > MAX_SECRETS {
        let problem = Problem::new(
            Code::TooMany,
            format!("[secrets] has {} variables, more than {MAX_SECRETS}", secrets.len()),
        )
        .label("too many")
        .help("keep several values in one secret, for example as JSON");
        reader.push(problem.at(&source, fields.span("secrets")));
    }
}

/// The file names a secret that the node does not have.
pub fn missing_secret(spec: &ServiceSpec, name: &str, source: &Source) -> Problem {
    let variable = spec.secrets.iter().find(|(_, secret)| *secret == name).map(|(v, _)| v);
    let place = variable.map_or_else(
        || place_of(source, &["outbound", "credentials"]),
        |variable| place_of(source, &["secrets", variable]),
    );
    Problem::new(Code::UnknownSecret, format!("there is no secret `{name}`"))
        .at(source, place)
        .label("not a secret of this node")
        .help(format!("narae secret set {name} < FILE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let file = format!("name = \"a\"\nmodule = \"a.wasm\"\n{text}");
        match super::super::service(&file, "a.toml") {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(|p| p.render(false)).collect(),
        }
    }

    #[test]
    fn a_variable_in_both_tables_is_told_with_its_place() {
        let said = problems("[env]\nA = \"x\"\nB = \"x\"\n[secrets]\nA = \"a\"\nC = \"a\"\n");
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].contains("a.toml:7:5") && said[0].contains("`A` is in [env] and in [secrets]"),
            "{}",
            said[0]
        );
    }

    #[test]
    fn what_looks_like_a_value_is_refused_and_what_is_a_name_is_taken() {
        for bad in ["Pa55 word", "", "a.b", "-a", "a_b", "UPPER"] {
            let said = problems(&format!("[secrets]\nA = \"{bad}\"\n"));
            assert!(
                said.len() == 1 && said[0].contains("never the value"),
                "{bad}: {said:?}"
            );
        }
        assert_eq!(
            problems("[secrets]\nA = \"orders-db-password\"\nB = \"orders-db-password\"\n"),
            [""; 0]
        );
    }

    #[test]
    fn so_many_and_no_more() {
        let file = |n: usize| (0..n).fold("[secrets]\n".to_owned(), |out, n| out + &format!("V{n} = \"s{n}\"\n"));
        assert!(problems(&file(MAX_SECRETS)).is_empty());
        assert!(problems(&file(MAX_SECRETS + 1))[0].contains("more than 64"));
    }

    #[test]
    fn a_missing_secret_is_told_where_it_is_named_and_how_it_is_made() {
        let text = "name = \"a\"\nmodule = \"a.wasm\"\n[secrets]\nDB = \"orders-db\"\n";
        let spec = super::super::service(text, "a.toml").unwrap().spec;
        let said = missing_secret(&spec, "orders-db", &Source::new("a.toml", text)).render(false);
        assert!(
            said.contains("a.toml:4:6") && said.contains("narae secret set orders-db"),
            "{said}"
        );
    }
}
