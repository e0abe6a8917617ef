//! Texts with rules: what a rule is, and those for names, modules, digests, variables and files. Each check gives the text in its one normal form, or says what is
//! wrong and how to repair it.

use narae_runtime::Digest;

use super::codes::Code;
use super::hosts::domain;
use crate::model::ServiceName;

/// A rule for a text.
pub struct Check {
    /// What is expected, after "must be".
    pub expected: &'static str,
    /// As TOML, for messages.
    pub example: &'static str,
    /// The same as a list.
    pub list_example: &'static str,
    /// For the JSON Schema.
    pub pattern: Option<&'static str>,
    /// The text in its normal form.
    pub run: fn(&str) -> Result<String, Wrong>,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.expected)
    }
}

/// What is wrong with a text. `message` continues the key's name: ``must be a path``.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub code: Code,
    pub message: String,
    pub label: &'static str,
    pub help: Option<String>,
}

pub(super) fn wrong(
    code: Code,
    message: impl Into<String>,
    label: &'static str,
    help: impl Into<Option<&'static str>>,
) -> Wrong {
    Wrong {
        code,
        message: message.into(),
        label,
        help: help.into().map(str::to_owned),
    }
}

pub(super) fn later(message: impl Into<String>, help: &'static str) -> Wrong {
    wrong(
        Code::NotSupportedYet,
        format!("{} is not supported yet", message.into()),
        "not supported yet",
        help,
    )
}

pub static SERVICE_NAME: Check = Check {
    expected: "a name of a-z, 0-9 and `-`",
    example: "\"hello\"",
    list_example: "[\"hello\"]",
    pattern: Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    run: |text| {
        text.parse::<ServiceName>().map(|n| n.to_string()).map_err(|e| Wrong {
            code: Code::BadServiceName,
            message: "is not a service name".into(),
            label: "not a service name",
            help: Some(match near_name(text) {
                Some(near) => format!("{e}; for example `{near}`"),
                None => e.to_string(),
            }),
        })
    },
};

/// The nearest text that is a name.
fn near_name(text: &str) -> Option<String> {
    let mapped: String = text
        .chars()
        .take(63)
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    let near = mapped.trim_matches('-').to_owned();
    near.parse::<ServiceName>().is_ok().then_some(near)
}

pub static MODULE: Check = Check {
    expected: "the path of a .wasm file",
    example: "\"hello.wasm\"",
    list_example: "[]",
    pattern: None,
    run: |text| {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("https" | "http") => Err(later(
                "from a URL",
                "download the file and name its path: module = \"hello.wasm\"",
            )),
            Some("oci") => Err(later(
                "from a registry (oci://)",
                "pull the file with another tool and name its path: module = \"hello.wasm\"",
            )),
            Some(_) => Err(wrong(
                Code::BadModule,
                "must be a path",
                "not a path",
                "write a path relative to this file: module = \"hello.wasm\"",
            )),
            None if text.is_empty() => Err(wrong(
                Code::BadModule,
                "is empty",
                "no path",
                "write a path relative to this file: module = \"hello.wasm\"",
            )),
            None => line(text),
        }
    },
};

pub static DIGEST: Check = Check {
    expected: "`sha256:` and 64 hex digits",
    example: "\"sha256:9f86…\"",
    list_example: "[]",
    pattern: Some("^sha256:[0-9a-fA-F]{64}$"),
    run: |text| {
        text.parse::<Digest>().map(|d| d.to_string()).map_err(|_| {
            wrong(
                Code::BadDigest,
                "is not a digest",
                "expected `sha256:` and 64 hex digits",
                "`sha256sum FILE` prints the digits",
            )
        })
    },
};

/// One printable line.
pub static LINE: Check = Check {
    expected: "one line of text",
    example: "\"text\"",
    list_example: "[\"text\"]",
    pattern: None,
    run: line,
};

fn line(text: &str) -> Result<String, Wrong> {
    if text.chars().any(char::is_control) {
        return Err(wrong(
            Code::BadText,
            "has control characters in it",
            "must be one printable line",
            "remove the line breaks and escapes",
        ));
    }
    Ok(text.to_owned())
}

/// Any text a guest can be given.
pub static VALUE: Check = Check {
    expected: "a text",
    example: "\"text\"",
    list_example: "[\"text\"]",
    pattern: None,
    run: |text| {
        if text.contains('\0') {
            return Err(wrong(
                Code::BadText,
                "has a zero byte in it",
                "zero byte",
                "no program can be given a text with a zero byte",
            ));
        }
        Ok(text.to_owned())
    },
};

/// The name of a variable, a configuration key or a label.
pub static VARIABLE: Check = Check {
    expected: "a name without `=`",
    example: "LOG_LEVEL",
    list_example: "[]",
    pattern: Some("^[^=\\x00-\\x1f\\x7f]{1,256}$"),
    run: |text| {
        if text.is_empty() || text.len() > 256 || text.contains('=') || text.chars().any(char::is_control) {
            return Err(wrong(
                Code::BadVariableName,
                "is not a name",
                "not a name",
                "a name has 1 to 256 bytes, no `=` and no control characters",
            ));
        }
        Ok(text.to_owned())
    },
};

pub static SECRET_NAME: Check = Check {
    expected: "the name of a secret",
    example: "\"orders-db-password\"",
    list_example: "[]",
    pattern: Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    run: |text| {
        // The text is not shown in the help: it may be a secret that was written here by mistake.
        text.parse::<ServiceName>().map(|n| n.to_string()).map_err(|_| {
            wrong(
                Code::BadSecretName,
                "is not a secret's name",
                "not a name",
                "write the name, never the value: 1 to 63 of a-z, 0-9 and `-`; `narae secret set NAME` keeps the value",
            )
        })
    },
};

pub static STORE_NAME: Check = Check {
    expected: "a store name",
    example: "\"default\"",
    list_example: "[]",
    pattern: Some("^[A-Za-z0-9_-]{1,63}$"),
    run: |text| {
        let ok = (1..=63).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !ok {
            return Err(wrong(
                Code::BadStoreName,
                "is not a store name",
                "not a store name",
                "a store name is 1 to 63 of A-Z, a-z, 0-9, `-` and `_`",
            ));
        }
        Ok(text.to_owned())
    },
};

pub static NODE_NAME: Check = Check {
    expected: "a node name",
    example: "\"edge-seoul-01\"",
    list_example: "[]",
    pattern: None,
    run: |text| {
        let lower = text.to_ascii_lowercase();
        if !domain(&lower) {
            return Err(wrong(
                Code::BadServiceName,
                "is not a node name",
                "not a node name",
                "labels of a-z, 0-9 and `-`, joined by `.`, 253 in all",
            ));
        }
        Ok(lower)
    },
};

/// A method of HTTP, in capitals as the RFC has them.
pub static METHOD: Check = Check {
    expected: "a method of HTTP",
    example: "\"GET\"",
    list_example: "[\"GET\", \"POST\"]",
    pattern: Some("^[A-Z]{1,32}$"),
    run: |text| {
        if (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase()) {
            return Ok(text.to_owned());
        }
        Err(wrong(
            Code::BadText,
            "is no method of HTTP",
            "not a method",
            "write it in capitals: \"GET\"",
        ))
    },
};

/// The name of a header that a client may send and a route may ask for, kept in lower case.
pub static FIELD_NAME: Check = Check {
    expected: "the name of a header",
    example: "\"x-beta\"",
    list_example: "[]",
    pattern: Some("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$"),
    run: |text| {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+.^_`|~-".contains(&b);
        if !(1..=128).contains(&text.len()) || !text.bytes().all(token) {
            let help = "letters, digits and hyphens: \"x-beta\"";
            return Err(wrong(Code::BadText, "is no name of a header", "not a name", help));
        }
        let name = text.to_ascii_lowercase();
        let framing = [
            "host",
            "connection",
            "transfer-encoding",
            "content-length",
            "te",
            "upgrade",
            "keep-alive",
        ];
        if framing.contains(&name.as_str()) {
            let help = "use `host` of the route, or a header that carries meaning for the service";
            return Err(wrong(
                Code::BadText,
                "belongs to the connection",
                "not a header of a request",
                help,
            ));
        }
        Ok(name)
    },
};

/// The value of a header, compared as it is.
pub static FIELD_VALUE: Check = Check {
    expected: "the value of a header",
    example: "\"1\"",
    list_example: "[]",
    pattern: Some("^[ -~]{0,1024}$"),
    run: |text| {
        if text.len() <= 1024 && text.bytes().all(|b| (b' '..=b'~').contains(&b)) && text.trim() == text {
            return Ok(text.to_owned());
        }
        Err(wrong(
            Code::BadText,
            "is no value of a header",
            "not printable ASCII, or with spaces around it",
            "at most 1,024 printable characters",
        ))
    },
};

pub static FILE: Check = Check {
    expected: "the path of a file or directory",
    example: "\"state\"",
    list_example: "[]",
    pattern: None,
    run: |text| {
        if text.is_empty() {
            return Err(wrong(
                Code::BadNodePath,
                "is empty",
                "no path",
                "leave the key out for the default",
            ));
        }
        line(text)
    },
};

/// A text that must stay empty until its feature exists.
pub static NOTHING: Check = Check {
    expected: "nothing",
    example: "\"\"",
    list_example: "[]",
    pattern: Some("^$"),
    run: |text| {
        if text.is_empty() {
            Ok(String::new())
        } else {
            Err(later("with a value", "leave it empty"))
        }
    },
};
