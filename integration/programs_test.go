package integration

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// busy has the mount trimmed over and over, and a program write synchronously to it, until stop is called, which is
// before the mount goes, or else the program would write where it was.
func (m *mount) busy() (stop func()) {
	synchronous := m.path("synchronous")
	stopTrim := m.trimLoop(10 * time.Millisecond)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
			}
			_, err := tryRun(m.base, "", "dd", "if=/dev/zero", "of="+synchronous, "bs=5000", "count=50", "oflag=sync")
			if err != nil {
				m.t.Error(err)
				<-quit
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(quit)
		<-done
		if stopTrim() == 0 {
			m.t.Error("nothing was trimmed")
		}
		if err := os.Remove(synchronous); err != nil {
			m.t.Error(err)
		}
	})
}

// makeSpecimens makes a tree with one of everything that a file can be and have.
func makeSpecimens(t testing.TB, dir string) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	run(t, dir, "bash", "-euc", `
umask 022
mkdir -p plain/deep/er empty 'strange names'
for i in $(seq 50); do
	head -c $((i * 977)) /dev/urandom > plain/$i
	touch -d "2011-11-11 11:11:$((i % 60)).$((123456000 + i))" plain/$i
done
printf 'a' > "strange names/$(printf 'new\nline')"; printf 'b' > 'strange names/ leading and trailing '
printf 'c' > "strange names/$(printf '\377\376')"; printf 'd' > "strange names/$(printf 'x%.0s' $(seq 255))"
ln plain/1 plain/hard1; ln plain/1 plain/deep/hard2; ln plain/deep/hard2 'strange names/hard3'
ln -s ../1 plain/deep/soft; ln -s nowhere dangling; ln -s /etc/passwd absolute; ln dangling hardlinked-symlink
mkfifo fifo; mknod null c 1 3; mknod block b 7 77
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
cp /bin/true setuid; chown 1234:5678 setuid; chmod 6755 setuid
mkdir sticky setgid; chmod 1777 sticky; chmod 2775 setgid; chown 0:4321 setgid
echo nothing > unreadable; chmod 0 unreadable
setfattr -n user.text -v value plain/2; setfattr -n user.binary -v 0x00ff00fe plain/2; setfattr -n user.empty plain/3
setfattr -n user.dir -v x plain; setfattr -n trusted.overlay.opaque -v y plain/deep
setfattr -n user.long -v "$(head -c 1000 /dev/zero | tr '\0' z)" plain/4
cp /bin/true capable; setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 capable
setfacl -m u:1234:rw,g:5678:r,m::rw plain/5; setfacl -m d:u:1234:rwx,d:g::rx,u:99:x plain/deep
truncate -s 50M sparse-empty
for at in 0 12345678 40000000; do printf data | dd of=sparse bs=1 seek=$at conv=notrunc status=none; done
truncate -s 48M sparse
touch -h -d '1999-12-31 23:59:59.999999999' dangling; touch -d '1970-01-01 00:00:00.000000001 UTC' empty
touch -d '2040-02-03 04:05:06.789' fifo plain/6
# rsync leaves a time as it is that differs in the fraction only.
find . -depth -newermt 2024-01-01 ! -newermt 2039-01-01 -exec touch -h -d '2013-03-03 03:03:03.303030303' {} +
`)
}

// manifest is all that a copy must keep of each file in a tree, as lines. Files with several names have the first of them.
func manifest(t testing.TB, root string) (lines []string) {
	t.Helper()
	first := map[uint64]string{}
	must(t, filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		st := stat(t, name)
		kind := st.Mode & unix.S_IFMT
		line := fmt.Sprintf("%q mode %#o owner %d:%d", rel, st.Mode, st.Uid, st.Gid)
		if rel != "." {
			line += fmt.Sprintf(" mtime %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch kind {
		case unix.S_IFLNK:
			target, err := os.Readlink(name)
			must(t, err)
			line += fmt.Sprintf(" target %q", target)
		case unix.S_IFREG:
			line += fmt.Sprintf(" size %d sha256 %x", st.Size, sha256.Sum256(mustRead(t, name)))
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" device %#x", st.Rdev)
		}
		if kind != unix.S_IFDIR {
			if _, ok := first[st.Ino]; !ok {
				first[st.Ino] = rel
			}
			line += fmt.Sprintf(" links %d as %q", st.Nlink, first[st.Ino])
		}
		lines = append(lines, line+xattrs(t, name))
		return nil
	}))
	return lines
}

// xattrs are the extended attributes of a file, ACLs among them.
func xattrs(t testing.TB, name string) (s string) {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, buf)
	must(t, err)
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	for _, attribute := range names {
		n, err := unix.Lgetxattr(name, attribute, buf)
		must(t, err)
		s += fmt.Sprintf(" %s=%x", attribute, buf[:n])
	}
	return s
}

// sameManifest fails the test unless a copy has all that its original has.
func sameManifest(t testing.TB, what string, want, got []string) {
	t.Helper()
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			t.Fatalf("%s: %d entries, want %d; the first that differs is\n%s\nwant\n%s",
				what, len(got), len(want), at(got, i), at(want, i))
		}
	}
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(none)"
}

// wantSparse fails the test unless the sparse files of the specimens take next to no space.
func wantSparse(t testing.TB, dir string) {
	t.Helper()
	for _, name := range []string{"sparse", "sparse-empty"} {
		if st := stat(t, filepath.Join(dir, name)); st.Blocks > 1024 {
			t.Errorf("%s has %d blocks, which is not sparse", filepath.Join(dir, name), st.Blocks)
		}
	}
}

// roundTrip copies specimens onto a file system and off again with rsync and with tar, and once more within it.
func roundTrip(t *testing.T, dir string) {
	away := scratch(t)
	original := filepath.Join(dir, "original")
	makeSpecimens(t, original)
	want := manifest(t, original)
	wantSparse(t, original)
	copied := func(what, to string) {
		t.Helper()
		sameManifest(t, what, want, manifest(t, to))
		wantSparse(t, to)
	}
	const rsync = "rsync -aHAX --sparse --devices --specials "
	const tarIn = "tar --xattrs --xattrs-include='*' --acls -S -cf - ."
	const tarOut = "tar --xattrs --xattrs-include='*' --acls -xpf -"
	off, on := filepath.Join(away, "off"), filepath.Join(dir, "on")
	run(t, "", "sh", "-c", rsync+original+"/ "+off+"/")
	copied("rsync to another file system", off)
	run(t, "", "sh", "-c", rsync+off+"/ "+on+"/")
	copied("rsync back", on)
	if out := run(t, "", "sh", "-c", rsync+"-i --checksum --delete "+off+"/ "+on+"/"); out != "" {
		t.Errorf("rsync would still change:\n%s", tail(out))
	}
	// Sockets are not for tar.
	want = slices.DeleteFunc(want, func(s string) bool { return strings.HasPrefix(s, `"socket"`) })
	for _, to := range []string{filepath.Join(away, "tar"), filepath.Join(dir, "tar")} {
		must(t, os.Mkdir(to, 0o755))
		run(t, "", "sh", "-c", "cd "+original+" && rm -f socket && "+tarIn+" | (cd "+to+" && "+tarOut+")")
		copied("tar to "+to, to)
	}
	run(t, "", "cp", "-a", "--sparse=always", original, filepath.Join(dir, "cp"))
	copied("cp -a", filepath.Join(dir, "cp"))
}

// TestRoundTrip copies files with all that they can have onto the mount and off it, and finds every byte and attribute.
func TestRoundTrip(t *testing.T) {
	t.Run("tmpfs", func(t *testing.T) { roundTrip(t, mountTmpfs(t, "size=256M")) })
	t.Run("16M", func(t *testing.T) {
		m := mountMemfs(t, options{memory: "16M"})
		stop := m.busy()
		defer stop()
		roundTrip(t, m.dir)
		stop()
		m.pageOut()
		sameManifest(t, "paged out", manifest(t, m.path("tar")), manifest(t, m.path("cp")))
	})
}

// TestPostgreSQL has a database on the mount, with the sockets and the shared memory of its processes, under load from
// four connections; then all of it is killed, and it recovers from its log.
func TestPostgreSQL(t *testing.T) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("no PostgreSQL here")
		}
		t.Skip("no PostgreSQL here")
	}
	bin := filepath.Dir(found[len(found)-1])
	t.Run("tmpfs", func(t *testing.T) { postgreSQL(t, mountTmpfs(t, "size=512M"), bin) })
	t.Run("32M", func(t *testing.T) {
		m := mountMemfs(t, options{memory: "32M", pageFile: "1G"})
		defer m.busy()()
		postgreSQL(t, m.dir, bin)
	})
}

func postgreSQL(t *testing.T, mountPoint, bin string) {
	dir := filepath.Join(mountPoint, "pg")
	must(t, os.Mkdir(dir, 0o700))
	run(t, "", "chown", "nobody:nogroup", dir)
	data := filepath.Join(dir, "data")
	tryAs := func(program string, args ...string) (string, error) {
		return tryRun(dir, "", "setpriv", append([]string{"--reuid", "nobody", "--regid", "nogroup", "--clear-groups",
			"env", "HOME=" + dir, "LC_ALL=C", filepath.Join(bin, program)}, args...)...)
	}
	as := func(program string, args ...string) string {
		t.Helper()
		out, err := tryAs(program, args...)
		must(t, err)
		return out
	}
	// The server goes on without pg_ctl; its output goes to the log, so that nobody waits for it here.
	tryStart := func() error {
		_, err := tryAs("pg_ctl", "-D", data, "-w", "-t", "60", "-s", "-l", filepath.Join(dir, "log"), "-o",
			"-c listen_addresses= -c unix_socket_directories="+dir+" -c shared_buffers=4MB -c max_wal_size=64MB -c min_wal_size=32MB "+
				"-c shared_memory_type=mmap -c dynamic_shared_memory_type=mmap", "start")
		return err
	}
	start := func() { t.Helper(); must(t, tryStart()) }
	bench := []string{"-h", dir, "-n", "-c", "4", "-t"}
	as("initdb", "-D", data, "-A", "trust", "-k", "-U", "postgres")
	start()
	defer func() { _, _ = tryAs("pg_ctl", "-D", data, "-s", "-w", "-m", "immediate", "stop") }()
	as("pgbench", "-h", dir, "-U", "postgres", "-i", "-q", "-s", short("5", "2"), "postgres")
	as("pgbench", append(bench, short("2000", "300"), "-U", "postgres", "postgres")...)

	// The server goes while it is at work, and so do all of its processes.
	var pid int
	_, err := fmt.Sscan(string(mustRead(t, filepath.Join(data, "postmaster.pid"))), &pid)
	must(t, err)
	benched := make(chan struct{})
	go func() {
		defer close(benched)
		_, _ = tryRun(dir, "", filepath.Join(bin, "pgbench"), append(bench, "1000000", "-U", "postgres", "postgres")...)
	}()
	time.Sleep(500 * time.Millisecond)
	all := append(childrenOf(pid), pid)
	slices.Reverse(all) // the server first, which would start others in their place
	for _, p := range all {
		_ = unix.Kill(p, unix.SIGKILL) // some end by themselves
	}
	<-benched
	if !within(20*time.Second, func() bool { return tryStart() == nil }) {
		start()
	}
	const sums = "SELECT (SELECT sum(delta) FROM pgbench_history) = sum(abalance), " +
		"(SELECT sum(bbalance) FROM pgbench_branches) = sum(abalance), " +
		"(SELECT sum(tbalance) FROM pgbench_tellers) = sum(abalance) FROM pgbench_accounts"
	if got := as("psql", "-h", dir, "-U", "postgres", "-Atc", sums, "postgres"); got != "t|t|t\n" {
		t.Errorf("the accounts do not add up after the recovery: %q", got)
	}
	as("pg_ctl", "-D", data, "-s", "-w", "-m", "fast", "stop")
	as("pg_checksums", "-D", data, "--check")
}

// TestCompiler has a program and its library compiled, linked and run on the mount, which loses their pages all the time.
func TestCompiler(t *testing.T) {
	t.Run("tmpfs", func(t *testing.T) { compiler(t, mountTmpfs(t, "size=64M")) })
	t.Run("16M", func(t *testing.T) {
		m := mountMemfs(t, options{memory: "16M"})
		defer m.busy()()
		compiler(t, m.dir)
	})
}

func compiler(t *testing.T, mountPoint string) {
	dir := filepath.Join(mountPoint, "c")
	must(t, os.MkdirAll(filepath.Join(dir, "tmp"), 0o755))
	source := func(name, text string) {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	source("lib.c", "int table[5000] = {7}; int f(int i) { return table[i % 5000] += i; }\n")
	source("static.c", "int g(int i) { return i * 3; }\n")
	source("main.c", `#include <dlfcn.h>
#include <stdio.h>
int f(int); int g(int);
int main(void) {
	void *lib = dlopen("./libplugin.so", RTLD_NOW);
	int (*h)(int) = lib ? (int (*)(int))dlsym(lib, "f") : 0;
	if (!h) { puts(dlerror()); return 1; }
	unsigned sum = 0;
	for (int i = 0; i < 3000000; i++)
		sum += f(i % 100) + g(i) + h(1);
	printf("%u\n", sum);
	return 0;
}
`)
	out := run(t, dir, "bash", "-euc", `
export TMPDIR=$PWD/tmp
gcc -O1 -fPIC -shared -o libf.so lib.c; cp libf.so libplugin.so
gcc -O1 -c static.c -o static.o; ar rcs libg.a static.o
gcc -O1 -g -o main main.c -L. -lf -lg -ldl -Wl,-rpath,'$ORIGIN'
for i in 1 2 3; do ./main; done | uniq -c
strip main; ./main; [ -z "$(ls -A tmp)" ]
`)
	lines := strings.Fields(out)
	if len(lines) != 3 || lines[0] != "3" || lines[1] != lines[2] {
		t.Errorf("the program says %q", out)
	}
}
