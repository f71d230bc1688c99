//! Debian's servers serve many clients, reload and stop under the monitor as they do without it, and a request that
//! crashes is nobody else's business, whichever process it is in.

use vmsrs_tests::{kvm_case, servers};

fn serves(test: &str, name: &str) {
    kvm_case(test);
    let recipe = servers::recipe(name);
    let exercise = |monitored| {
        servers::exercise(&recipe, monitored).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let (native, monitored) = (exercise(false), exercise(true));
    assert!(native.problems.is_empty(), "natively: {native:#?}");
    assert_eq!(monitored, native);
}

macro_rules! servers {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                serves(stringify!($test), $name);
            }
        )*

        #[test]
        fn each_has_its_test() {
            let tested = [$($name),*];
            let names = servers::all();
            assert!(names.iter().map(|recipe| recipe.name).eq(tested));
        }
    };
}

servers! {
    nginx_with_workers: "nginx with workers",
    nginx_alone: "nginx alone",
    lighttpd: "lighttpd",
    apache_event: "apache event",
    apache_prefork: "apache prefork",
    haproxy: "haproxy",
    haproxy_with_workers: "haproxy with workers",
    mosquitto: "mosquitto",
    vsftpd: "vsftpd",
    postgresql: "postgresql",
    mariadb: "mariadb",
    node: "node",
    python: "python",
    gunicorn: "gunicorn",
    varnish: "varnish",
    php_fpm: "php-fpm",
    dovecot: "dovecot",
    go: "go",
    java: "java",
    sshd: "sshd",
}
