//! A module that narae does not run, as a problem of the service file (or of no file) that names it.

use narae_runtime::{ArtifactError, Digest};

use super::codes::Code;
use super::diagnostic::{Problem, Source, quoted};
use super::places::place_of;
use super::units::show_size;

/// The problem of a module named `module` in messages; marked at the key `module` where the service file is known.
pub fn artifact(error: &ArtifactError, module: &str, source: Option<&Source>) -> Problem {
    let name = quoted(module);
    let (problem, label) = match error {
        ArtifactError::TooLarge { found, limit } => {
            let message = format!(
                "module {name} is {found} bytes, more than the {} allowed",
                show_size(*limit)
            );
            (
                Problem::new(Code::ModuleTooLarge, message)
                    .help("leave out debug information: build it with --release"),
                "too large",
            )
        }
        ArtifactError::NotWasm { looks_like } => {
            let message = format!("module {name} is not a wasm binary: it looks like {looks_like}");
            (
                Problem::new(Code::NotWasm, message).help("name the .wasm file that the build made"),
                "not wasm",
            )
        }
        ArtifactError::Malformed(why) => {
            let problem = Problem::new(Code::ModuleMalformed, format!("module {name} is malformed: {why}"));
            (
                problem.help("build or copy it again; `wasm-tools validate FILE` tells more"),
                "malformed",
            )
        }
        ArtifactError::Unsupported { exports, expected } => {
            let found = if exports.is_empty() {
                "nothing".to_owned()
            } else {
                shorten(exports)
            };
            let problem = Problem::new(
                Code::UnsupportedExports,
                format!("module {name} exports {found}, which narae does not run"),
            );
            (
                problem.help(format!("expected one of {}", expected.join(", "))),
                "nothing to run in it",
            )
        }
        // `TooMany`, and what may come.
        other => {
            let problem = Problem::new(Code::ModuleMalformed, format!("module {name}: {other}"));
            (problem.help("split it, or leave out what it does not use"), "refused")
        }
    };
    at_key(problem.label(label), "module", source)
}

/// The module is another than the file pins.
pub fn digest_mismatch(wanted: &Digest, found: &Digest, source: Option<&Source>) -> Problem {
    let problem = Problem::new(Code::DigestMismatch, format!("the module is {found}, not {wanted}"))
        .label("pinned here")
        .help("was it built again? If that is known, write the new digest");
    at_key(problem, "digest", source)
}

/// What to do about imports that nobody offers.
pub fn not_offered_help(missing: &[String]) -> &'static str {
    if missing.iter().any(|name| name.starts_with("wasi:blobstore/")) {
        // The container resource moved between its interfaces, and error types changed, with the version left at 0.2.0-draft.
        return "wasi:blobstore is a draft of several forms under one version, so that no host can tell which one is meant; \
                keep files in a [[volume]] (wasi:filesystem) or values in a [[keyvalue]] store";
    }
    "`narae module inspect` lists what a module imports"
}

fn at_key(problem: Problem, key: &str, source: Option<&Source>) -> Problem {
    match source {
        Some(source) => problem.at(source, place_of(source, &[key])),
        None => problem,
    }
}

/// The first few of what may be thousands.
fn shorten(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(5).map(|n| quoted(n)).collect();
    let more = names.len().saturating_sub(shown.len());
    if more == 0 {
        shown.join(", ")
    } else {
        format!("{} and {more} more", shown.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_code_and_points_to_the_module() {
        let source = Source::new("a.toml", "name = \"a\"\nmodule = \"a.wasm\"\n");
        for (error, code) in [
            (
                ArtifactError::TooLarge {
                    found: 70 << 20,
                    limit: 64 << 20,
                },
                Code::ModuleTooLarge,
            ),
            (ArtifactError::NotWasm { looks_like: "gzip" }, Code::NotWasm),
            (
                ArtifactError::Malformed("unexpected end\u{1b}[2J".into()),
                Code::ModuleMalformed,
            ),
            (
                ArtifactError::Unsupported {
                    exports: vec!["add".into()],
                    expected: &["wasi:cli/run@0.2"],
                },
                Code::UnsupportedExports,
            ),
            (
                ArtifactError::TooMany {
                    what: "imports",
                    found: 20_000,
                    limit: 1_000,
                },
                Code::ModuleMalformed,
            ),
        ] {
            let problem = artifact(&error, "a.wasm", Some(&source));
            assert_eq!((problem.code, problem.position()), (code, Some((2, 10))));
            assert!(!problem.render(false).contains('\u{1b}'));
            assert_eq!(artifact(&error, "a.wasm", None).position(), None);
        }
    }

    #[test]
    fn a_blob_store_is_refused_with_the_reason_and_what_to_use_instead() {
        let help = not_offered_help(&["acme:x/y@1.0.0".into(), "wasi:blobstore/container@0.2.0-draft".into()]);
        assert!(help.contains("draft") && help.contains("[[volume]]"), "{help}");
        assert!(!not_offered_help(&["acme:x/y@1.0.0".into()]).contains("blobstore"));
    }

    #[test]
    fn thousands_of_exports_are_not_all_listed() {
        let exports = (0..20_000).map(|i| format!("f{i}")).collect();
        let problem = artifact(&ArtifactError::Unsupported { exports, expected: &[] }, "a", None);
        assert!(
            problem.message.ends_with("and 19995 more, which narae does not run"),
            "{}",
            problem.message
        );
    }

    #[test]
    fn a_digest_that_differs_is_marked_where_it_is_pinned() {
        let source = Source::new("a.toml", "digest = \"sha256:…\"\n");
        let problem = digest_mismatch(&Digest::of(b"a"), &Digest::of(b"b"), Some(&source));
        assert_eq!(problem.position(), Some((1, 10)));
    }
}
