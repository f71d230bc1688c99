//! The servers' files and command lines.

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::{Crash, Recipe, Server, dialogue};
use crate::{free_port, guest, process::Bounded};

/// All servers.
pub fn all() -> Vec<Recipe> {
    let recipe = |name, set_up| Recipe { name, set_up };
    vec![
        recipe("nginx with workers", |port| nginx(port, true)),
        recipe("nginx alone", |port| nginx(port, false)),
        recipe("lighttpd", lighttpd),
        recipe("apache event", |port| apache(port, "event")),
        recipe("apache prefork", |port| apache(port, "prefork")),
        recipe("haproxy", |port| haproxy(port, false)),
        recipe("haproxy with workers", |port| haproxy(port, true)),
        recipe("mosquitto", mosquitto),
        recipe("vsftpd", vsftpd),
        recipe("postgresql", postgresql),
        recipe("mariadb", mariadb),
        recipe("node", node),
        recipe("python", python),
        recipe("gunicorn", gunicorn),
        recipe("varnish", varnish),
        recipe("php-fpm", php_fpm),
        recipe("dovecot", dovecot),
        recipe("go", go),
        recipe("java", java),
        recipe("sshd", sshd),
    ]
}

/// A directory that everybody may look into, with [`dialogue::page`] in `www`.
fn directory() -> io::Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("vmsrs-server-").tempdir()?;
    let www = dir.path().join("www");
    fs::create_dir(&www)?;
    fs::write(www.join("page.txt"), dialogue::page())?;
    for path in [dir.path(), &www] {
        open_to_all(path)?;
    }
    Ok(dir)
}

fn open_to_all(path: &Path) -> io::Result<()> {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, mode)
}

/// Writes `text` to `name`, with `DIR` and `PORT` put in; the path.
fn write(dir: &TempDir, port: u16, name: &str, text: &str) -> io::Result<String> {
    let path = dir.path().join(name);
    let text = text
        .replace("DIR", &dir.path().display().to_string())
        .replace("PORT", &port.to_string());
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

/// A web server that cannot reload.
fn web(dir: TempDir, port: u16, command: &[&str]) -> Server {
    Server {
        dir,
        port,
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        backend: None,
        reload: None,
        stop: libc::SIGTERM,
        visit: Box::new(dialogue::http),
        crash: Crash::Reported,
    }
}

fn nginx(port: u16, workers: bool) -> io::Result<Server> {
    let dir = directory()?;
    let processes = match workers {
        true => "user nobody nogroup; worker_processes 2;",
        false => "master_process off;",
    };
    let text = "daemon off; error_log stderr; pid DIR/pid;
        events { worker_connections 256; }
        http { access_log off; client_body_temp_path DIR/b; proxy_temp_path DIR/p; fastcgi_temp_path DIR/f;
               uwsgi_temp_path DIR/u; scgi_temp_path DIR/s; default_type text/plain;
               server { listen 127.0.0.1:PORT; root DIR/www; } }";
    let file = write(&dir, port, "conf", &format!("{processes} {text}"))?;
    Ok(Server {
        // Alone it cannot.
        reload: workers.then_some(libc::SIGHUP),
        stop: libc::SIGQUIT,
        ..web(dir, port, &["nginx", "-c", &file])
    })
}

fn lighttpd(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let text = r#"
        server.document-root = "DIR/www"
        server.bind = "127.0.0.1"
        server.port = PORT
        mimetype.assign = ( ".txt" => "text/plain" )
        "#;
    let file = write(&dir, port, "conf", text)?;
    Ok(Server {
        // It opens its log files anew.
        reload: Some(libc::SIGHUP),
        stop: libc::SIGINT,
        ..web(dir, port, &["lighttpd", "-D", "-f", &file])
    })
}

fn apache(port: u16, module: &str) -> io::Result<Server> {
    let dir = directory()?;
    let text = "
        ServerRoot DIR
        PidFile DIR/pid
        Listen 127.0.0.1:PORT
        ServerName localhost
        ErrorLog /dev/stderr
        DocumentRoot DIR/www
        StartServers 2
        LoadModule mpm_MODULE_module /usr/lib/apache2/modules/mod_mpm_MODULE.so
        LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
        User www-data
        Group www-data
        "
    .replace("MODULE", module);
    let file = write(&dir, port, "conf", &text)?;
    Ok(Server {
        reload: Some(libc::SIGUSR1),
        stop: libc::SIGWINCH,
        ..web(dir, port, &["apache2", "-DFOREGROUND", "-f", &file])
    })
}

fn haproxy(port: u16, workers: bool) -> io::Result<Server> {
    let dir = directory()?;
    let text = "
        global
            maxconn 200
            hard-stop-after 5s
        defaults
            mode http
            timeout client 30s
            timeout server 30s
            timeout connect 5s
        frontend page
            bind 127.0.0.1:PORT
            http-request return status 200 content-type text/plain file DIR/www/page.txt
";
    let file = write(&dir, port, "conf", text)?;
    let command: &[&str] = match workers {
        true => &["haproxy", "-W", "-f", &file],
        false => &["haproxy", "-db", "-f", &file],
    };
    Ok(Server {
        reload: workers.then_some(libc::SIGUSR2),
        stop: match workers {
            true => libc::SIGTERM,
            false => libc::SIGUSR1,
        },
        ..web(dir, port, command)
    })
}

fn mosquitto(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let text = "listener PORT 127.0.0.1\nallow_anonymous true\nuser root\n";
    let file = write(&dir, port, "conf", text)?;
    Ok(Server {
        reload: Some(libc::SIGHUP),
        visit: Box::new(dialogue::mqtt),
        ..web(dir, port, &["mosquitto", "-c", &file])
    })
}

fn vsftpd(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let text = "
listen=YES
listen_address=127.0.0.1
listen_port=PORT
background=NO
anonymous_enable=YES
anon_root=DIR/www
secure_chroot_dir=DIR/empty
nopriv_user=nobody
";
    fs::create_dir(dir.path().join("empty"))?;
    open_to_all(&dir.path().join("empty"))?;
    let file = write(&dir, port, "conf", text)?;
    Ok(Server {
        reload: Some(libc::SIGHUP),
        visit: Box::new(dialogue::ftp),
        ..web(dir, port, &["vsftpd", &file])
    })
}

fn done(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{command:?}: {output:?}"))),
    }
}

/// PostgreSQL does not run as root.
fn postgresql(port: u16) -> io::Result<Server> {
    const BINARIES: &str = "/usr/lib/postgresql";
    const AS_POSTGRES: [&str; 4] = [
        "/usr/bin/setpriv",
        "--reuid=postgres",
        "--regid=postgres",
        "--clear-groups",
    ];
    let dir = directory()?;
    let version = fs::read_dir(BINARIES)?
        .next()
        .ok_or(io::ErrorKind::NotFound)??;
    let binaries = version.path().join("bin");
    let program = |name: &str| binaries.join(name).display().to_string();
    let data = dir.path().join("data");
    fs::create_dir(&data)?;
    done(
        Command::new("chown")
            .arg("postgres")
            .args([dir.path(), &data]),
    )?;
    let data = data.display().to_string();
    done(
        Command::new(AS_POSTGRES[0])
            .args(&AS_POSTGRES[1..])
            .arg(program("initdb"))
            .args(["--no-sync", "--auth=trust", "-D", &data]),
    )?;
    let (port_text, sockets) = (port.to_string(), dir.path().display().to_string());
    let mut command = AS_POSTGRES.to_vec();
    let postgres = program("postgres");
    command.extend([
        postgres.as_str(),
        "-D",
        &data,
        "-p",
        &port_text,
        "-k",
        &sockets,
    ]);
    Ok(Server {
        reload: Some(libc::SIGHUP),
        stop: libc::SIGINT,
        visit: Box::new(dialogue::postgresql),
        // Whoever connects writes what all others write.
        crash: Crash::None,
        ..web(dir, port, &command)
    })
}

fn mariadb(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let data = format!("--datadir={}", dir.path().join("data").display());
    done(Command::new("mariadb-install-db").args([
        "--no-defaults",
        "--user=root",
        "--skip-test-db",
        "--auth-root-authentication-method=normal",
        &data,
    ]))?;
    let socket = format!("--socket={}", dir.path().join("socket").display());
    let port_option = format!("--port={port}");
    let command = [
        "mariadbd",
        "--no-defaults",
        "--user=root",
        "--skip-name-resolve",
        "--bind-address=127.0.0.1",
        &data,
        &socket,
        &port_option,
    ];
    Ok(Server {
        reload: Some(libc::SIGHUP),
        visit: Box::new(dialogue::mariadb),
        ..web(dir, port, &command)
    })
}

fn node(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let text = "
        const page = require('fs').readFileSync('DIR/www/page.txt');
        const server = require('http').createServer((request, answer) => {
            answer.writeHead(200, { 'Content-Length': page.length });
            answer.end(page);
        });
        server.listen(PORT, '127.0.0.1');
        process.on('SIGTERM', () => server.close(() => process.exit(3)));
        ";
    let file = write(&dir, port, "server.js", text)?;
    Ok(web(dir, port, &["node", &file]))
}

fn python(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let command = python_serves(&dir, port);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    Ok(Server {
        stop: libc::SIGINT,
        ..web(dir, port, &command)
    })
}

fn python_serves(dir: &TempDir, port: u16) -> Vec<String> {
    let (www, number) = (
        dir.path().join("www").display().to_string(),
        port.to_string(),
    );
    let options = ["--bind", "127.0.0.1", "--directory", &www, &number];
    let command = ["/usr/bin/python3", "-m", "http.server"];
    command
        .iter()
        .chain(&options)
        .map(|word| (*word).to_owned())
        .collect()
}

fn gunicorn(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let text = "
page = open('DIR/www/page.txt', 'rb').read()
def app(environment, start):
    start('200 OK', [('Content-Length', str(len(page)))])
    return [page]
";
    write(&dir, port, "pages.py", text)?;
    let (path, address) = (
        dir.path().display().to_string(),
        format!("127.0.0.1:{port}"),
    );
    let options = ["--chdir", &path, "--bind", &address, "--workers", "2"];
    let command = [&["gunicorn"], &options[..], &["pages:app"]].concat();
    Ok(Server {
        reload: Some(libc::SIGHUP),
        ..web(dir, port, &command)
    })
}

/// No page is asked for twice, so that it always asks its backend.
fn varnish(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let backend_port = free_port()?;
    let asked = python_serves(&dir, backend_port);
    let backend = Bounded::spawn(
        Command::new(&asked[0])
            .args(&asked[1..])
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    let text = "vcl 4.1; backend page { .host = \"127.0.0.1\"; .port = \"PORT\"; }";
    let file = write(&dir, backend_port, "conf", text)?;
    let (address, work) = (
        format!("127.0.0.1:{port}"),
        dir.path().join("work").display().to_string(),
    );
    let options = ["-F", "-a", &address, "-f", &file, "-n", &work];
    let command = [&["varnishd"], &options[..], &["-s", "malloc,16m"]].concat();
    Ok(Server {
        backend: Some(backend),
        ..web(dir, port, &command)
    })
}

fn php_fpm(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let text = "
[global]
error_log = /dev/stderr
; Otherwise a reload does not wait for what is being served.
process_control_timeout = 10
[page]
user = www-data
group = www-data
listen = 127.0.0.1:PORT
pm = static
pm.max_children = 2
chroot = DIR/www
";
    write(&dir, port, "www/page.php", "<?php readfile('page.txt');")?;
    let file = write(&dir, port, "conf", text)?;
    Ok(Server {
        reload: Some(libc::SIGUSR2),
        stop: libc::SIGQUIT,
        visit: Box::new(dialogue::fastcgi),
        ..web(dir, port, &["php-fpm8.2", "-F", "-y", &file])
    })
}

fn dovecot(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let text = "
base_dir = DIR/run
state_dir = DIR/state
log_path = /dev/stderr
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:DIR/mail
first_valid_uid = 1
passdb {
  driver = passwd-file
  args = scheme=plain DIR/users
}
userdb {
  driver = static
  args = uid=nobody gid=nogroup home=DIR/mail
}
# Processes serve one client after the other, or all at once; to start one for each takes long.
service imap {
  service_count = 100
}
service imap-login {
  service_count = 0
  inet_listener imap {
    port = PORT
  }
  inet_listener imaps {
    port = 0
  }
}
";
    let mail = dir.path().join("mail");
    fs::create_dir(&mail)?;
    done(Command::new("chown").arg("nobody:nogroup").arg(&mail))?;
    write(&dir, port, "users", "ada:secret\n")?;
    let file = write(&dir, port, "conf", text)?;
    Ok(Server {
        reload: Some(libc::SIGHUP),
        visit: Box::new(dialogue::imap),
        ..web(dir, port, &["dovecot", "-F", "-c", &file])
    })
}

/// Both stumble over a null pointer in each request, which their runtimes handle.
fn go(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let program = guest::go_server("go-server").map_err(io::Error::other)?;
    let page = dir.path().join("www/page.txt").display().to_string();
    let program = program.display().to_string();
    Ok(web(dir, port, &[&program, &port.to_string(), &page]))
}

fn java(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    let class = guest::java_server("java-server").map_err(io::Error::other)?;
    let classes = class.parent().unwrap_or(&class).display().to_string();
    let page = dir.path().join("www/page.txt").display().to_string();
    let command = ["java", "-cp", &classes, "Server", &port.to_string(), &page];
    Ok(web(dir, port, &command))
}

/// Sessions with a command, with a terminal, and with files. It takes keys only, of its own.
fn sshd(port: u16) -> io::Result<Server> {
    let dir = directory()?;
    for name in ["host", "user"] {
        let path = dir.path().join(name);
        let options = ["-q", "-t", "ed25519", "-N", "", "-f"];
        done(Command::new("ssh-keygen").args(options).arg(path))?;
    }
    // Its privileged part insists on this directory.
    fs::create_dir_all("/run/sshd")?;
    let text = "
ListenAddress 127.0.0.1
Port PORT
HostKey DIR/host
PidFile none
AuthorizedKeysFile DIR/user.pub
StrictModes no
UsePAM no
PrintMotd no
MaxStartups 100
# A shell that believes to be the first one of a session reads what root has in its own directory.
SetEnv SHLVL=5
Subsystem sftp /usr/lib/openssh/sftp-server
";
    let file = write(&dir, port, "conf", text)?;
    let home = dir.path().to_path_buf();
    Ok(Server {
        visit: Box::new(move |port, tag| dialogue::ssh(&home, port, tag)),
        ..web(dir, port, &["/usr/sbin/sshd", "-D", "-e", "-f", &file])
    })
}
