//! `[[volume]]`: what its names and mounts may be, alone and beside each other. Where a volume lies on the node is not known.

use super::checks::{Check, wrong};
use super::codes::Code;
use super::diagnostic::Problem;
use super::fields::Fields;
use super::read::Reader;
use crate::model::ServiceName;
use crate::model::service::Volume;

/// More than any path a guest's toolchain takes.
const MAX_MOUNT_BYTES: usize = 255;

pub static VOLUME_NAME: Check = Check {
    expected: "a name of a-z, 0-9 and `-`",
    example: "\"cache\"",
    list_example: "[]",
    pattern: Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    run: |text| {
        // The rule is the same, the words are not.
        text.parse::<ServiceName>().map(|name| name.to_string()).map_err(|_| {
            wrong(
                Code::BadVolumeName,
                "is not a volume name",
                "not a volume name",
                "a volume name is a DNS label: a-z, 0-9 and `-`, 1 to 63 characters",
            )
        })
    },
};

pub static MOUNT: Check = Check {
    expected: "an absolute path",
    example: "\"/data\"",
    list_example: "[]",
    pattern: Some("^/"),
    run: |text| {
        let path = text.strip_suffix('/').unwrap_or(text);
        let parts = path.strip_prefix('/').map(|rest| rest.split('/'));
        let good = parts.is_some_and(|mut parts| parts.all(|part| !matches!(part, "" | "." | "..")))
            && path.len() <= MAX_MOUNT_BYTES
            && !path.chars().any(char::is_control);
        if !good {
            return Err(wrong(
                Code::BadMount,
                "is not a mount",
                "not a mount",
                "a mount is an absolute path such as `/data`, not `/` itself, without `.` and `..`",
            ));
        }
        Ok(path.to_owned())
    },
};

/// What was read; [`check`] has looked at it.
pub fn build(fields: &Fields) -> Vec<Volume> {
    let volume = |table: &Fields| Volume {
        name: table.text("name").to_owned(),
        mount: table.text("mount").to_owned(),
        size_bytes: table.bytes("size"),
        read_only: table.bool("read_only"),
    };
    fields.tables("volume").iter().map(volume).collect()
}

/// Names and mounts that are fine alone and not together.
pub fn check(fields: &Fields, reader: &mut Reader) {
    let source = reader.source.clone();
    let mut names = std::collections::BTreeSet::new();
    // What is missing or wrong by itself has been told.
    for table in fields
        .tables("volume")
        .iter()
        .filter(|table| !table.text("name").is_empty())
    {
        if !names.insert(table.text("name")) {
            let text = format!("volume `{}` is there twice", table.text("name"));
            let problem = Problem::new(Code::BadVolumeName, text)
                .label("the same name again")
                .help("give each [[volume]] its own `name`");
            reader.push(problem.at(&source, table.span("name")));
        }
    }
    let mut mounts: Vec<&Fields> = fields
        .tables("volume")
        .iter()
        .filter(|table| !table.text("mount").is_empty())
        .collect();
    // Compared part by part, so that what lies inside another comes right after it or after what lies inside it too.
    mounts.sort_by_key(|table| table.text("mount").split('/').collect::<Vec<_>>());
    let mut outer: Option<&str> = None;
    for table in mounts {
        let mount = table.text("mount");
        let inside = outer.filter(|outer| is_inside(mount, outer));
        let Some(other) = inside else {
            outer = Some(mount);
            continue;
        };
        let (text, label) = if mount == other {
            (format!("mount `{mount}` is there twice"), "the same place again")
        } else {
            (
                format!("mount `{mount}` lies inside `{other}`"),
                "inside another volume",
            )
        };
        let problem = Problem::new(Code::BadMount, text)
            .label(label)
            .help("give each volume a place of its own, beside the others");
        reader.push(problem.at(&source, table.span("mount")));
    }
}

/// The same place, or below it.
fn is_inside(mount: &str, outer: &str) -> bool {
    mount
        .strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::service;

    const HEAD: &str = "name = \"a\"\nmodule = \"a.wasm\"\n";

    fn codes(volumes: &str) -> Vec<Code> {
        match service(&format!("{HEAD}{volumes}"), "a.toml") {
            Ok(checked) => checked.warnings.iter().map(|p| p.code).collect(),
            Err(problems) => problems.iter().map(|p| p.code).collect(),
        }
    }

    fn mounted(mounts: &[&str]) -> Vec<Code> {
        let tables = mounts
            .iter()
            .enumerate()
            .map(|(i, mount)| format!("[[volume]]\nname = \"v{i}\"\nmount = {mount:?}\n"));
        codes(&tables.collect::<String>())
    }

    #[test]
    fn a_volume_has_a_name_a_place_and_a_size() {
        let text =
            format!("{HEAD}[[volume]]\nname = \"cache\"\nmount = \"/var/cache/\"\nsize = \"1GiB\"\nread_only = true\n");
        let spec = service(&text, "a.toml").unwrap().spec;
        let volume = Volume {
            name: "cache".into(),
            mount: "/var/cache".into(),
            size_bytes: 1 << 30,
            read_only: true,
        };
        assert_eq!(spec.volumes, [volume]);
    }

    #[test]
    fn size_and_read_only_have_defaults() {
        let text = format!("{HEAD}[[volume]]\nname = \"cache\"\nmount = \"/data\"\n");
        let spec = service(&text, "a.toml").unwrap().spec;
        assert_eq!(
            (spec.volumes[0].size_bytes, spec.volumes[0].read_only),
            (32 << 20, false)
        );
        let printed = crate::config::effective(&spec);
        assert_eq!(service(&printed, "a.toml").unwrap().spec, spec);
    }

    #[test]
    fn a_volume_without_name_or_mount_is_refused() {
        assert_eq!(codes("[[volume]]\n"), [Code::MissingKey; 2]);
    }

    #[test]
    fn names_are_dns_labels_and_their_own() {
        for name in ["", "A", "a_b", "..", "a/b", "-a", "."] {
            let text = format!("[[volume]]\nname = {name:?}\nmount = \"/data\"\n");
            assert_eq!(codes(&text), [Code::BadVolumeName], "{name}");
        }
        let twice = "[[volume]]\nname = \"a\"\nmount = \"/a\"\n[[volume]]\nname = \"a\"\nmount = \"/b\"\n";
        assert_eq!(codes(twice), [Code::BadVolumeName]);
    }

    #[test]
    fn mounts_are_absolute_and_plain() {
        for mount in [
            "",
            "/",
            "//",
            "data",
            "/a/../b",
            "/a/./b",
            "/a//b",
            "/..",
            &format!("/{}", "x".repeat(255)),
        ] {
            assert_eq!(mounted(&[mount]), [Code::BadMount], "{mount:?}");
        }
    }

    #[test]
    fn a_mount_is_printable() {
        let text = "[[volume]]\nname = \"a\"\nmount = \"/a\\u0007\"\n";
        assert_eq!(codes(text), [Code::BadMount]);
    }

    #[test]
    fn no_mount_lies_inside_another() {
        assert_eq!(mounted(&["/data", "/data"]), [Code::BadMount]);
        assert_eq!(mounted(&["/data/cache", "/data"]), [Code::BadMount]);
        assert_eq!(mounted(&["/a", "/a-b", "/a/b"]), [Code::BadMount]);
        assert_eq!(mounted(&["/a", "/a/b/c", "/a/b", "/a!"]), [Code::BadMount; 2]);
        assert_eq!(mounted(&["/data", "/data2", "/dat", "/x/data"]), []);
    }

    #[test]
    fn sizes_have_bounds() {
        for size in ["1KiB", "65GiB"] {
            let text = format!("[[volume]]\nname = \"a\"\nmount = \"/a\"\nsize = {size:?}\n");
            assert_eq!(codes(&text), [Code::OutOfRange], "{size}");
        }
    }

    #[test]
    fn the_mistakes_shown_are_mistakes_and_the_repairs_repair() {
        for code in [Code::BadVolumeName, Code::BadMount] {
            let chapter = crate::config::explain(code.as_str()).unwrap();
            let block = |which: &str| {
                let (_, rest) = chapter.split_once(which).unwrap();
                rest.lines()
                    .skip(2)
                    .map_while(|l| l.strip_prefix("    "))
                    .map(|l| format!("{l}\n"))
                    .collect::<String>()
            };
            assert_eq!(codes(&block("Wrong:")), [code]);
            assert_eq!(codes(&block("Right:")), []);
        }
    }
}
