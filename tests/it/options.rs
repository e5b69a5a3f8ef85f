//! Settings: refused before anything starts, every bad one named.

use crate::Outcome;
use crate::support::launch::Launch;

#[test]
fn every_bad_setting_is_named_at_once() -> Outcome {
    let launch = Launch::new("pixel")?
        .with("listen", "nonsense")
        .with("workers", "0")
        .with("trusted-proxies", "10.0.0.0/8,x")
        .with("spool-max-bytes", "0")
        .with("format", "xml")
        .with("output", "/tmp")
        .with("read-timeout-ms", "-1")
        .with("rotate-bytes", "1M")
        .with("rotate-at", "weekly")
        .with("compress", "lz4")
        .with("keep", "90 days");
    let (status, _, stderr) = launch.run()?;
    assert_eq!(status, 2, "{stderr}");
    for named in [
        "--rotate-bytes (PIXEL_ROTATE_BYTES) is `1M`: expected a whole number from 0",
        "--rotate-at (PIXEL_ROTATE_AT) is `weekly`: expected hourly, daily, or times of day in UTC such as 06:00,18:00",
        "--compress (PIXEL_COMPRESS) is `lz4`: expected gzip or zstd",
        "--keep (PIXEL_KEEP) is `90 days`: expected an age such as 90d (h, d, w), a size such as 10GiB (MiB, GiB, TiB), a number \
         such as 30files, or several of them with commas, each above 0 and given once",
        "--listen (PIXEL_LISTEN) is `nonsense`",
        "--workers (PIXEL_WORKERS) is `0`",
        "`x` is no CIDR",
        "--spool-max-bytes",
        "expected pipe, combined, vcombined or ndjson",
        "--output",
        "--read-timeout-ms",
    ] {
        assert!(stderr.contains(named), "`{named}` is not in {stderr}");
    }
    assert!(!launch.folder().join("spool").exists(), "nothing is started with bad settings");
    Ok(())
}

/// What becomes of rotated files, where none is rotated, was meant for something.
#[test]
fn what_becomes_of_rotated_files_wants_rotation() -> Outcome {
    for (flag, value) in [("compress", "zstd"), ("keep", "90d")] {
        let (status, _, stderr) = Launch::new("pixel")?.with(flag, value).run()?;
        let said = "it is for files that Pixel rotates: set PIXEL_ROTATE_AT or PIXEL_ROTATE_BYTES, too";
        assert!(status == 2 && stderr.contains(&format!("--{flag} (")) && stderr.contains(said), "{stderr}");
    }
    Ok(())
}

#[test]
fn bad_settings_of_the_queue_are_named() -> Outcome {
    for (shards, shard, said) in [
        ("0", "0", "--shards (PIXEL_SHARDS) is `0`: expected a whole number from 1 to 64"),
        ("65", "0", "--shards (PIXEL_SHARDS) is `65`"),
        ("4", "4", "--shard (PIXEL_SHARD) is `4`: expected auto, or a number from 0 to 3"),
        ("1", "first", "--shard (PIXEL_SHARD) is `first`: expected auto"),
    ] {
        let launch = Launch::new("pixel-storage")?.with("shards", shards).with("shard", shard);
        let (status, _, stderr) = launch.run()?;
        assert!(status == 2 && stderr.contains(said), "{shards} {shard}: {status}, {stderr}");
    }
    for (name, value) in [("no-declare", "maybe"), ("masstransit-exchange", "amq.fanout")] {
        let (status, _, stderr) = Launch::new("pixel-storage")?.with(name, value).run()?;
        assert!(status == 2 && stderr.contains(&format!("--{name}")), "{name}: {status}, {stderr}");
    }
    let long = "q".repeat(249);
    let (status, _, stderr) = Launch::new("pixel-http")?.with("shards", "2").with("queue", long).run()?;
    assert!(status == 2 && stderr.contains("expected up to 247 bytes"), "{status}, {stderr}");
    Ok(())
}

/// A misspelt variable, or level of the log, was ignored.
#[test]
fn a_variable_that_does_not_exist_and_a_level_that_is_none_are_refused() -> Outcome {
    for (name, value, said) in [
        ("PIXEL_OUTPTU", "visits.log", "PIXEL_OUTPTU: there is no such variable; was PIXEL_OUTPUT meant?"),
        ("PIXEL_LOG", "warning", "--log (PIXEL_LOG) is `warning`: expected a level"),
        ("RUST_LOG", "warning", "RUST_LOG is `warning`: expected a level"),
        ("PIXEL_PATH", "track", "--path (PIXEL_PATH) is `track`: expected a path"),
    ] {
        for program in ["pixel", "pixel-http"] {
            let (status, _, stderr) = Launch::new(program)?.variable(name, value).run()?;
            assert!(status == 2 && stderr.contains(said), "{name}: {status}, {stderr}");
        }
    }
    // What another part of the system reads is no mistake, and RUST_LOG counts where PIXEL_LOG is unset.
    let launch = Launch::new("pixel")?.variable("PIXEL_SITE", "px.example.com").variable("RUST_LOG", "debug");
    let mut program = launch.start()?;
    program.wait_for_log("the spool is")?;
    program.stop()?;
    // Where both are set PIXEL_LOG counts, for each part by itself.
    let launch = Launch::new("pixel")?.variable("RUST_LOG", "trace");
    let mut program = launch.variable("PIXEL_LOG", "warn,pixel::program=debug").spawn()?;
    program.wait_for_log("the spool is")?;
    program.stop()?;
    assert!(program.log().lines().all(|line| line.contains(" pixel::program")), "{}", program.log());
    Ok(())
}

#[test]
fn settings_may_be_in_a_file_and_check_says_what_counts() -> Outcome {
    let launch = Launch::new("pixel-http")?;
    let path = launch.folder().join("pixel.toml");
    std::fs::write(
        &path,
        "queue = \"of.the.file\"\nworkers = 3\namqp-url = [\"amqp://u:sesame@a\", \"amqp://b\"]\n",
    )?;
    let launch = launch.variable("PIXEL_CONFIG", &path.to_string_lossy()).with("workers", "2");
    let check = launch.clone().argument("check").argument("--spool-slots").argument("7");
    let (status, stdout, stderr) = check.run()?;
    assert_eq!(status, 0, "{stderr}");
    for line in [
        format!("PIXEL_QUEUE = of.the.file  # {}", path.display()),
        format!("PIXEL_AMQP_URL = ***  # {}", path.display()),
        "PIXEL_WORKERS = 2  # PIXEL_WORKERS".into(),
        "PIXEL_SPOOL_SLOTS = 7  # --spool-slots".into(),
        "PIXEL_FORMAT".into(),
        "PIXEL_PATH = /track  # default".into(),
    ] {
        assert_eq!(stdout.contains(&line), line != "PIXEL_FORMAT", "{line}: {stdout}");
    }
    assert!(!stdout.contains("sesame") && !launch.folder().join("spool").exists());
    let mut program = launch.start()?;
    program.wait_for_log("queue of.the.file")?;
    program.stop()?;

    let url = launch.folder().join("url");
    std::fs::write(&url, "amqp://u:sesame@of.a.file\n")?;
    std::fs::write(&path, format!("amqp-url-file = \"{}\"\n", url.display()))?;
    let (status, stdout, stderr) = launch.clone().argument("check").run()?;
    assert!(
        status == 0 && stdout.contains(&format!("PIXEL_AMQP_URL = ***  # {}", path.display())),
        "{stdout}{stderr}"
    );

    for (text, said) in [
        ("quue = \"x\"", "pixel.toml`: there is no `quue` to be set in a file; was `queue` meant?"),
        // What the environment may have besides, and a file cannot set: it was passed over.
        ("site = \"x\"", "pixel.toml`: there is no `site` to be set in a file"),
        ("amqp-url-file = \"/nowhere/url\"", "PIXEL_AMQP_URL_FILE is `/nowhere/url`: No such file"),
        ("queue = true", "`queue` is a boolean"),
        ("queue", "--config (PIXEL_CONFIG) is `"),
        // A parser may quote the line that it does not understand.
        ("queue = \"x\"\namqp-url = \"amqp://u:sesame@h", "line 2: "),
        ("spool-slots = 0", "--spool-slots (PIXEL_SPOOL_SLOTS) is `0`"),
    ] {
        std::fs::write(&path, text)?;
        for launch in [&launch, &launch.clone().argument("check")] {
            let (status, _, stderr) = launch.run()?;
            assert!(status == 2 && stderr.contains(said), "{text}: {status}, {stderr}");
            assert!(!stderr.contains("sesame"), "{stderr}");
        }
    }
    std::fs::remove_file(&path)?;
    let (status, _, stderr) = launch.run()?;
    assert!(status == 2 && stderr.contains("No such file"), "{stderr}");
    Ok(())
}

#[test]
fn the_log_has_a_form_for_people_machines_and_the_journal() -> Outcome {
    for (format, is_well) in [
        (
            "text",
            (|line| line.starts_with("[2") && line.contains("Z INFO  pixel] listening on"))
                as fn(&str) -> bool,
        ),
        ("json", |line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            let said = line["message"].as_str().is_some_and(|said| said.starts_with("listening on http://"));
            let time = line["time"].as_str().unwrap_or_default();
            said && line["level"] == "info" && line["component"] == "pixel" && time.len() == 24
        }),
        ("journal", |line| line.starts_with("<6>[pixel] listening on http://")),
    ] {
        let mut program = Launch::new("pixel")?.with("log-format", format).start()?;
        let line = program.wait_for_log("listening on")?;
        program.stop()?;
        assert!(is_well(&line), "{format}: {line}");
    }
    let (status, _, stderr) = Launch::new("pixel")?.with("log-format", "xml").run()?;
    assert!(status == 2 && stderr.contains("expected text, json or journal"), "{stderr}");
    Ok(())
}

#[test]
fn the_broker_s_url_may_be_in_a_file() -> Outcome {
    let launch = Launch::new("pixel-http")?;
    let path = launch.folder().join("url");
    std::fs::write(&path, "amqp://u:sesame@127.0.0.1:1/%2f\n")?;
    let launch = launch.variable("PIXEL_AMQP_URL_FILE", &path.to_string_lossy());
    let mut program = launch.start()?;
    program.wait_for_log("amqp://u:***@127.0.0.1:1")?;
    program.stop()?;
    let (status, _, stderr) = launch.clone().with("amqp-url", "amqp://h").run()?;
    assert!(status == 2 && stderr.contains("one of them is enough"), "{stderr}");
    std::fs::remove_file(&path)?;
    let (status, _, stderr) = launch.run()?;
    assert!(status == 2 && stderr.contains("PIXEL_AMQP_URL_FILE is `"), "{stderr}");
    Ok(())
}

#[test]
fn a_file_of_certificates_that_is_of_no_use_is_named() -> Outcome {
    let launch = Launch::new("pixel-storage")?.with("amqp-url", "amqps://h");
    let empty = launch.folder().join("empty.pem");
    std::fs::write(&empty, "no certificate")?;
    for (given, said) in [
        (&["amqp-ca-file"][..], "--amqp-ca-file (PIXEL_AMQP_CA_FILE) is `"),
        (&["amqp-cert-file"], "--amqp-key-file (PIXEL_AMQP_KEY_FILE) is ``: the key of PIXEL_AMQP_CERT_FILE"),
        (&["amqp-key-file"], "--amqp-cert-file (PIXEL_AMQP_CERT_FILE) is ``: the certificate of"),
        (&["amqp-cert-file", "amqp-key-file"], "--amqp-cert-file (PIXEL_AMQP_CERT_FILE) is `"),
    ] {
        let launch = given.iter().fold(launch.clone(), |launch, flag| launch.with(flag, &empty));
        let (status, _, stderr) = launch.run()?;
        assert!(status == 2 && stderr.contains(said), "{given:?}: {status}, {stderr}");
    }
    Ok(())
}

#[test]
fn a_password_is_never_shown() -> Outcome {
    for url in ["amqp://u:sesame@h/a/b", "http://u:sesame@h", "sesame", "amqp://u:sesame@h:x"] {
        for program in ["pixel-http", "pixel-storage"] {
            let launch = Launch::new(program)?.with("amqp-url", url);
            let (status, stdout, stderr) = launch.run()?;
            assert_eq!(status, 2, "{url}: {stderr}");
            assert!(stderr.contains("--amqp-url (PIXEL_AMQP_URL)"), "{stderr}");
            assert!(!(stdout + &stderr).contains("sesame"), "{url} is shown: {stderr}");
        }
    }
    let (_, help, _) =
        Launch::new("pixel-http")?.with("amqp-url", "amqp://u:sesame@h").argument("--help").run()?;
    assert!(!help.contains("sesame"));
    let mut program =
        Launch::new("pixel-http")?.with("amqp-url", "amqp://u:sesame@127.0.0.1:1/%2f").start()?;
    program.wait_for_log("amqp://u:***@127.0.0.1:1")?;
    assert!(!program.log().contains("sesame"));
    program.stop()
}

#[test]
fn help_and_version_are_there_and_name_every_option() -> Outcome {
    for (program, options) in [
        (
            "pixel",
            &[
                "PIXEL_LISTEN",
                "PIXEL_PATH",
                "PIXEL_ADMIN_LISTEN",
                "PIXEL_SPOOL_DIR",
                "PIXEL_SPOOL_MAX_BYTES",
                "PIXEL_WORKERS",
                "PIXEL_TRUSTED_PROXIES",
                "PIXEL_OUTPUT",
                "PIXEL_FORMAT",
                "PIXEL_LOG",
                "PIXEL_LOG_FORMAT",
            ][..],
        ),
        (
            "pixel-http",
            &[
                "PIXEL_LISTEN",
                "PIXEL_ADMIN_LISTEN",
                "PIXEL_AMQP_URL",
                "PIXEL_AMQP_CA_FILE",
                "PIXEL_AMQP_CERT_FILE",
                "PIXEL_AMQP_KEY_FILE",
                "PIXEL_QUEUE",
                "PIXEL_SPOOL_DIR",
                "PIXEL_SPOOL_MAX_BYTES",
                "PIXEL_WORKERS",
                "PIXEL_TRUSTED_PROXIES",
                "PIXEL_LOG",
                "PIXEL_LOG_FORMAT",
            ],
        ),
        (
            "pixel-storage",
            &[
                "PIXEL_ADMIN_LISTEN",
                "PIXEL_AMQP_URL",
                "PIXEL_AMQP_CA_FILE",
                "PIXEL_AMQP_CERT_FILE",
                "PIXEL_AMQP_KEY_FILE",
                "PIXEL_QUEUE",
                "PIXEL_OUTPUT",
                "PIXEL_FORMAT",
                "PIXEL_LOG",
                "PIXEL_LOG_FORMAT",
            ],
        ),
    ] {
        let (status, help, _) = Launch::new(program)?.argument("--help").run()?;
        assert_eq!(status, 0);
        for option in options {
            assert!(help.contains(option), "{program} --help does not name {option}");
        }
        let (status, version, _) = Launch::new(program)?.argument("--version").run()?;
        assert_eq!(
            (status, version.trim()),
            (0, format!("{program} {}", env!("CARGO_PKG_VERSION")).as_str())
        );
        let (status, ..) = Launch::new(program)?.argument("--no-such-option").run()?;
        assert_eq!(status, 2);
    }
    Ok(())
}

#[test]
fn the_flag_wins_over_the_variable() -> Outcome {
    let launch = Launch::new("pixel")?;
    let output = launch.folder().join("flag.log");
    let launch = launch.argument("run").argument("--output").argument(&output.to_string_lossy());
    let mut program = launch.start()?;
    program.wait_for_log(&format!("writing to {}", output.display()))?;
    program.stop()
}

#[test]
fn a_port_that_is_taken_is_said_in_one_line() -> Outcome {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let (status, _, stderr) = Launch::new("pixel")?.with("listen", &address).run()?;
    assert_eq!(status, 1);
    assert!(
        stderr.contains(&format!("pixel: failed to listen on {address}: Address already in use")),
        "{stderr}"
    );
    Ok(())
}
