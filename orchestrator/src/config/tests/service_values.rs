//! What single values of a service file may be, and what is said when they are not that.

use super::*;

#[test]
fn names_are_dns_labels() {
    for name in ["a", "a-b", "9", "a".repeat(63).as_str()] {
        good(&format!("name = \"{name}\"\nmodule = \"a.wasm\"\n"));
    }
    for name in [
        "",
        "A",
        "a_b",
        "-a",
        "a-",
        "a.b",
        "a b",
        "ü",
        "a\\u0000",
        "a\\n",
        "../x",
        "a".repeat(64).as_str(),
    ] {
        assert_eq!(
            codes(&format!("name = \"{name}\"\nmodule = \"a.wasm\"\n")),
            [Code::BadServiceName],
            "{name}"
        );
    }
    let help = bad("name = \"My Service\"\nmodule = \"a.wasm\"\n")[0]
        .help
        .clone()
        .unwrap();
    assert!(help.ends_with("for example `my-service`"), "{help}");
}

#[test]
fn modules_are_paths() {
    for module in ["a.wasm", "../a b/ü.wasm", "/abs/a.wat", "C:\\\\a.wasm"] {
        good(&format!("name = \"a\"\nmodule = \"{module}\"\n"));
    }
    for (module, code) in [
        ("", Code::BadModule),
        ("ftp://x/a", Code::BadModule),
        ("a\\u001b.wasm", Code::BadText),
        ("a\\u0000", Code::BadText),
    ] {
        assert_eq!(
            codes(&format!("name = \"a\"\nmodule = \"{module}\"\n")),
            [code],
            "{module}"
        );
    }
    each(
        Code::BadDigest,
        &[
            "digest = \"\"",
            "digest = \"sha256:12\"",
            "digest = \"9f86\"",
            "digest = \"sha512:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"",
        ],
    );
}

#[test]
fn hosts_are_lowered_and_a_star_is_one_whole_first_label() {
    let host = |h: &str| {
        good(&format!("{HEAD}[[route]]\nhost = \"{h}\"\n")).routes[0]
            .host
            .clone()
    };
    assert_eq!(host("API.Example.Test"), HostPattern::Exact("api.example.test".into()));
    assert_eq!(host("*.Example.test"), HostPattern::OneLabel("example.test".into()));
    assert_eq!(host("192.0.2.1"), HostPattern::Exact("192.0.2.1".into()));
    assert_eq!(host("[2001:DB8:0::1]"), HostPattern::Exact("[2001:db8::1]".into()));
    for host in [
        "",
        "*",
        "a.*.b",
        "*a.b",
        "a*",
        "*.*.a",
        "*.",
        "a..b",
        ".a",
        "a.",
        "-a.b",
        "a-.b",
        "a:80",
        "http://a",
        "a/b",
        "a b",
        "ü.test",
        "::1",
        "[::1",
        "[x]",
        "a\\u0000",
        "*.1.2.3.4",
    ] {
        assert_eq!(
            codes(&format!("{HEAD}[[route]]\nhost = \"{host}\"\n")),
            [Code::BadHost],
            "{host}"
        );
    }
    let long = vec!["a".repeat(63); 4].join(".");
    assert_eq!(codes(&format!("{HEAD}[[route]]\nhost = \"{long}\"\n")), [Code::BadHost]);
}

#[test]
fn paths_start_with_a_slash_and_lose_the_last_one() {
    let path = |p: &str| good(&format!("{HEAD}routes = [\"{p}\"]\n")).routes[0].path.clone();
    for (text, kept) in [
        ("/", "/"),
        ("/v1", "/v1"),
        ("/v1/", "/v1"),
        ("/a%20b/c", "/a%20b/c"),
        ("/~x/@y:z", "/~x/@y:z"),
    ] {
        assert_eq!(path(text), kept);
    }
    for text in [
        "",
        "v1",
        "//",
        "/a//b",
        "/./a",
        "/../a",
        "/a/..",
        "/a?b",
        "/a#b",
        "/*",
        "/a b",
        "/ü",
        "/%",
        "/%2",
        "/%zz",
        "/a\\u0000",
        "/a\\\\b",
        "api.test/v1",
        "/v1//",
    ] {
        assert_eq!(
            codes(&format!("{HEAD}routes = [\"{text}\"]\n")),
            [Code::BadPath],
            "{text}"
        );
    }
    assert_eq!(
        codes(&format!("{HEAD}routes = [\"/{}\"]\n", "a".repeat(1024))),
        [Code::BadPath]
    );
}

#[test]
fn two_routes_of_one_path_differ_by_what_they_ask_for() {
    let path = "[[route]]\npath = \"/\"\n";
    let get = format!("{path}methods = [\"GET\", \"HEAD\"]\n");
    good(&format!("{HEAD}{path}{get}"));
    good(&format!("{HEAD}{get}{path}methods = [\"POST\"]\n"));
    good(&format!(
        "{HEAD}{path}{path}headers = {{ X-A = \"1\" }}\n{path}query = {{ a = \"1\" }}\n"
    ));
    for clash in [
        format!("{get}{path}methods = [\"HEAD\"]\n"),
        format!("{path}strip = true\n{path}"),
    ] {
        assert_eq!(codes(&format!("{HEAD}{clash}")), [Code::DuplicateRoute], "{clash}");
    }
    for bad in [
        "methods = [\"get\"]",
        "methods = [\"\"]",
        "headers = { host = \"a\" }",
        "headers = { \"a b\" = \"1\" }",
        "headers = { a = \"\\u0007\" }",
        "headers = { a = \" 1\" }",
    ] {
        assert_eq!(codes(&format!("{HEAD}{path}{bad}\n")), [Code::BadText], "{bad}");
    }
}

#[test]
fn a_route_is_there_once() {
    each(
        Code::DuplicateRoute,
        &[
            "routes = [\"/\", \"/\"]",
            "routes = [\"/a\", \"/a/\"]",
            "routes = [\"/\"]\n[[route]]",
            "[[route]]\nhost = \"A.test\"\n[[route]]\nhost = \"a.test\"\npath = \"/\"",
            "[[route]]\nhost = \"*.a.test\"\n[[route]]\nhost = \"*.A.test\"",
        ],
    );
    assert_eq!(
        good(&format!(
            "{HEAD}routes = [\"/\"]\n[[route]]\nhost = \"a.test\"\n[[route]]\nhost = \"*.test\"\n"
        ))
        .routes
        .len(),
        3
    );
    assert_eq!(
        bad(&format!("{HEAD}routes = [\"/x\",\n \"/x\"]\n"))[0].help.as_deref(),
        Some("remove one of the two; the first is on line 3")
    );
}

#[test]
fn origins_have_scheme_host_and_port() {
    let target = |t: &str| good(&format!("{HEAD}[outbound]\nallow = [\"{t}\"]\n")).outbound.allow[0].clone();
    for (text, host, port) in [
        ("https://a.test", "a.test", 443),
        ("HTTP://A.test/", "a.test", 80),
        ("http://10.0.0.1:8080", "10.0.0.1", 8080),
        ("https://*.a.test:444", "*.a.test", 444),
        ("http://[::1]:81", "::1", 81),
        ("http://[2001:DB8::1]", "2001:db8::1", 80),
        ("http://localhost", "localhost", 80),
    ] {
        let t = target(text);
        assert_eq!((t.host.as_str(), t.port), (host, port), "{text}");
    }
    for text in [
        "",
        "a.test",
        "https://",
        "https://*",
        "https://a.*.test",
        "https://a/b",
        "https://a?b",
        "https://u:p@a",
        "https://a:0",
        "https://a:65536",
        "https://a:",
        "https://a:x",
        "ftp://a",
        "://a",
        "https://[::1",
        "https://[::1]x",
        "https://a b",
        "*",
    ] {
        assert_eq!(
            codes(&format!("{HEAD}[outbound]\nallow = [\"{text}\"]\n")),
            [Code::BadTarget],
            "{text}"
        );
    }
}

#[test]
fn variables_have_names_and_no_zero_bytes() {
    let env = good(&format!("{HEAD}[env]\n\"a.b c\" = \"x\\ny\"\nE = \"\"\n")).env;
    assert_eq!((env["a.b c"].as_str(), env["E"].as_str()), ("x\ny", ""));
    each(
        Code::BadVariableName,
        &[
            "[env]\n\"\" = \"x\"",
            "[env]\n\"A=B\" = \"x\"",
            "[config]\n\"A\\u0000\" = \"x\"",
            "labels = { \"a\\nb\" = \"x\" }",
        ],
    );
    each(
        Code::BadText,
        &[
            "[env]\nA = \"x\\u0000\"",
            "args = [\"\\u0000\"]",
            "description = \"a\\nb\"",
            "labels = { a = \"x\\u001b\" }",
        ],
    );
}

#[test]
fn dependencies_are_other_services_once() {
    each(
        Code::BadDependency,
        &["depends_on = [\"a\"]", "depends_on = [\"b\", \"b\"]"],
    );
    each(Code::BadServiceName, &["depends_on = [\"B\"]"]);
}

#[test]
fn stores_have_names_of_their_own() {
    each(
        Code::BadStoreName,
        &[
            "[[keyvalue]]\n[[keyvalue]]",
            "[[keyvalue]]\nname = \"\"",
            "[[keyvalue]]\nname = \"a b\"",
            "[[keyvalue]]\nname = \"a/b\"",
        ],
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    each(
        Code::Contradiction,
        &[
            "[restart]\nbackoff = { initial = \"1m\" }",
            "[restart]\nbackoff = { max = \"5ms\" }",
            "[rollout]\nmax_surge = 0",
            "[rollout]\nmax_surge = \"0%\"\nmax_unavailable = \"0%\"",
        ],
    );
    good(&format!("{HEAD}[rollout]\nmax_surge = 0\nmax_unavailable = 1\n"));
}

#[test]
fn what_is_never_reached_is_a_warning_and_the_file_is_good() {
    let checked = service(
        &format!("{HEAD}world = \"http\"\n[limits]\ncpu_time = \"2m\"\n"),
        "a.toml",
    )
    .unwrap();
    let codes: Vec<_> = checked.warnings.iter().map(|w| (w.severity, w.code)).collect();
    assert_eq!(codes, [(Severity::Warning, Code::NeverReached); 2]);
}

#[test]
fn missing_keys_point_to_the_first_line() {
    for text in ["", "\n\n", "# nothing\n", "[limits]\nmemory = \"1MiB\"\n"] {
        let problems = bad(text);
        assert_eq!(
            problems.iter().map(|p| p.code).collect::<Vec<_>>(),
            [Code::MissingKey; 2],
            "{text:?}"
        );
        assert_eq!(problems[0].position().map(|p| p.0), Some(1));
        assert!(!problems[0].render(false).is_empty());
    }
}

#[test]
fn broken_syntax_is_told_with_its_place_and_the_rest_is_still_read() {
    let problems = bad("name = \"a\nmodule = \"a.wasm\"\n\n[limits]\nmemroy = 1\n");
    assert!(
        problems
            .iter()
            .any(|p| p.code == Code::Syntax && p.position().unwrap().0 == 1),
        "{problems:?}"
    );
    assert!(
        problems
            .iter()
            .any(|p| p.code == Code::UnknownKey && p.position().unwrap().0 == 5),
        "{problems:?}"
    );
    assert!(
        problems.iter().all(|p| p.code != Code::MissingKey),
        "a broken line may have held it"
    );
}

#[test]
fn a_key_or_table_that_is_there_twice_is_refused() {
    for line in [
        "replicas = 1\nreplicas = 2",
        "[limits]\n[limits]",
        "[env]\nA = \"1\"\nA = \"2\"",
        "[limits]\nmemory = \"1MiB\"\n[env]\n[limits]\ntimeout = \"1s\"",
        "limits.queue = 1\n[limits]",
    ] {
        assert_eq!(codes(&format!("{HEAD}{line}\n")), [Code::DuplicateKey], "{line}");
    }
}

#[test]
fn lines_may_end_as_on_windows_and_start_with_a_mark() {
    good(&FULL.replace('\n', "\r\n"));
    good(&format!("\u{feff}{SMALL}"));
    let problem = &bad(&format!("{HEAD}x = 1\n").replace('\n', "\r\n"))[0];
    assert_eq!(problem.position(), Some((3, 1)));
    assert!(!problem.render(false).contains('\r'));
}

#[test]
fn columns_are_counted_in_characters() {
    let problem = &bad(&format!("{HEAD}labels = {{ \"한국\" = \"ü\", x = 1 }}\n"))[0];
    assert_eq!(problem.position(), Some((3, 28)));
    assert_eq!(problem.to_view().column, Some(28));
    assert!(
        problem.to_view().rendered.contains("a.toml:3:28"),
        "{}",
        problem.render(false)
    );
}

#[test]
fn nothing_unprintable_leaves_a_message() {
    let evil = "\u{1b}]0;x\u{7}\u{9b}31m\u{202e}\u{200b}";
    for text in [
        format!("{HEAD}\"{evil}\" = 1\n"),
        format!("{HEAD}world = \"{evil}\"\n"),
        format!("{HEAD}world = \"\\u001b[2J\\u009b\\n\"\n"),
        format!("name = \"{evil}\"\nmodule = \"{evil}\"\n"),
        format!("{HEAD}[env]\n\"{evil}\" = 1 # {evil}\n"),
        format!("{evil} = {evil}"),
    ] {
        for problem in service(&text, &format!("a{evil}.toml")).unwrap_err() {
            let all = format!(
                "{}{:?}{:?}{}",
                problem.message,
                problem.label,
                problem.help,
                problem.render(false)
            );
            assert!(
                all.chars()
                    .all(|c| c == '\n' || visible(&c.to_string()) == c.to_string()),
                "{all:?}"
            );
            assert!(serde_json::to_string(&problem.to_view()).is_ok());
        }
    }
}

#[test]
fn bombs_are_answered_quickly_with_few_words() {
    let nested = |open: &str, close: &str| format!("{HEAD}x = {}{}\n", open.repeat(60_000), close.repeat(60_000));
    let texts = [
        "[".repeat(200_000),
        nested("[", "]"),
        nested("{a=", "}"),
        format!("{HEAD}{} = 1\n", vec!["a"; 100_000].join(".")),
        format!("{HEAD}[{}]\n", vec!["a"; 100_000].join(".")),
        format!("{HEAD}\"{}\" = 1\n", "k".repeat(250_000)),
        format!("{HEAD}{}", (0..20_000).map(|i| format!("[t{i}]\n")).collect::<String>()),
        format!("{HEAD}{}", "[[keyvalue]]\n".repeat(15_000)),
        format!("{HEAD}args = [{}]\n", "1,".repeat(100_000)),
        format!("{HEAD}{}", "=\n".repeat(100_000)),
        format!("{HEAD}{}", "a.b.c.d=1\n".repeat(20_000)),
        "\"".repeat(250_000),
        "\n".repeat(250_000),
        "k".repeat(8 << 20),
        format!("{HEAD}replicas = 1000000000\n"),
        format!(
            "{HEAD}routes = [{}, \"x\"]\n",
            (0..15_000)
                .map(|i| format!("\"/{i}\","))
                .collect::<String>()
                .trim_end_matches(',')
        ),
        format!("{HEAD}routes = [{}]\n", vec!["\"/a\""; 40_000].join(",")),
        format!(
            "{HEAD}x = 1\n[env]\n{}",
            (0..15_000).map(|i| format!("K{i} = \"\"\n")).collect::<String>()
        ),
        format!(
            "{HEAD}[env]\n{}",
            (0..20_000).map(|i| format!("K{i}=1\n")).collect::<String>()
        ),
        format!("{HEAD}depends_on = [{}]\n", vec!["\"b\""; 40_000].join(",")),
    ];
    for text in &texts {
        let problems = bad(text);
        assert!(problems.len() <= 101, "{}", problems.len());
        let rendered = render_all(&problems, true);
        assert!(rendered.len() < 200_000, "{} bytes of messages", rendered.len());
    }
}

#[test]
fn messages_look_as_the_reference_says() {
    insta::assert_snapshot!(
        "unknown_key",
        bad("name   = \"hello\"\nmodule = \"hello.wasm\"\nroutes = [\"/\"]\n\n\n[limits]\nmemroy = \"64MiB\"\n")[0]
            .render(false)
    );
    let many = "name = \"My App\"\nmodule = \"oci://registry.test/app:1\"\nreplicas = \"4\"\nroutes = [\"/v1\", \"/v1/\"]\ndescription = 7\nplacement = {}\n\n[limits]\ntimeout = 30\nmemory = \"64m\"\nconcurrency = 0\n\n[restart]\npolicy = \"on_failure\"\n\n[[route]]\nhost = \"*\"\n\n[rollout]\nstrategy = \"fast\"\nmax_surge = \"50\"\n\n[outbound]\nallow = [\"payments.test\"]\n\n[env]\nPORT = 8080\n\n[logs]\nrate = \"90/m\"\nroutes = []\n";
    insta::assert_snapshot!("many", render_all(&bad(many), false));
    insta::assert_snapshot!(
        "syntax",
        render_all(&bad("name = \"a\nmodule = \"a.wasm\nreplicas = = 2\n[limits\n"), false)
    );
    insta::assert_snapshot!("missing", render_all(&bad("[limits]\n"), false));
    insta::assert_snapshot!("empty", render_all(&bad(""), false));
    insta::assert_snapshot!("coloured", visible(&bad(&format!("{HEAD}x = 1\n"))[0].render(true)));
    insta::assert_json_snapshot!("view", bad(&format!("{HEAD}x = 1\n"))[0].to_view());
    let warnings = service(&format!("{HEAD}[limits]\ncpu_time = \"2m\"\n"), "a.toml")
        .unwrap()
        .warnings;
    insta::assert_snapshot!("warning", render_all(&warnings, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_text_is_answered_without_a_panic(text in ".{0,200}") {
        if let Err(problems) = service(&text, "x") {
            prop_assert!(!problems.is_empty());
            let _ = render_all(&problems, true);
            problems.iter().for_each(|p| { let _ = p.to_view(); });
        }
    }

    #[test]
    fn toml_like_text_is_answered_without_a_panic(lines in prop::collection::vec(
        prop::sample::select(vec![
            "name = \"a\"", "module = \"a.wasm\"", "[limits]", "[[limits]]", "[[route]]", "[route]", "[route.x]", "[[route.x]]", "path = \"/\"", "memory = ",
            "a.b = 1", "a = {", "}", "[", "]", "\"\"\"", "'", "= =", "routes = [\"/\",", "env.A = \"1\"", "[env]", "[a.b]", "[[a]]", "[a]", "x = 1 y = 2",
            "limits.memory = \"1MiB\"", "route = []", "\u{0}", "é = ü", "name = {a.b = 1}", "a.b.c = [1, {x=1}]", "\r", "# c", "1979-05-27 = 1979-05-27",
        ]),
        0..16,
    )) {
        let text = lines.join("\n");
        if let Err(problems) = service(&text, "x") {
            prop_assert!(!problems.is_empty());
            let _ = render_all(&problems, false);
        }
        let _ = crate::config::node(&text, "x");
        let _ = crate::config::fmt(&text);
    }

    #[test]
    fn a_good_file_with_one_character_changed_is_answered_without_a_panic(at in 0..FULL.len(), with in any::<char>()) {
        let mut text = FULL.to_owned();
        let at = text.floor_char_boundary(at);
        let old = text[at..].chars().next().map_or(0, char::len_utf8);
        text.replace_range(at..at + old, &with.to_string());
        match service(&text, "x") {
            Ok(checked) => prop_assert!(service(&crate::config::effective(&checked.spec), "y").is_ok()),
            Err(problems) => { let _ = render_all(&problems, true); }
        }
    }
}
