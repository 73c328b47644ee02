package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// goSource is a tree of Go's own source: all of it when sub is empty, over a hundred megabytes in ten thousand files.
func goSource(t testing.TB, sub string) string {
	t.Helper()
	dir := filepath.Join(strings.TrimSpace(run(t, "", "go", "env", "GOROOT")), "src", sub)
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// sameTree fails the test unless two trees have the same entries with the same bytes.
func sameTree(t testing.TB, a, b string) {
	t.Helper()
	run(t, "", "diff", "-r", "--no-dereference", a, b)
	if x, y := listing(t, a), listing(t, b); x != y {
		t.Errorf("%s and %s differ: %s", a, b, firstLines(x, y))
	}
}

// TestCopyTools copies, moves and removes trees as people do, with less memory than the tree has, while everything is
// trimmed.
func TestCopyTools(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "512M"})
	defer m.trimLoop(20 * time.Millisecond)()
	source := goSource(t, short("cmd/compile", "net/http"))
	extra := filepath.Join(scratch(t), "extra")
	must(t, os.MkdirAll(filepath.Join(extra, "d/e"), 0o750))
	must(t, os.Symlink("../d/e", filepath.Join(extra, "d/link")))
	must(t, os.Symlink("nowhere", filepath.Join(extra, "dangling")))
	must(t, os.WriteFile(filepath.Join(extra, "d/setuid"), []byte("#!/bin/true\n"), 0o755))
	run(t, extra, "chmod", "4751", "d/setuid")
	run(t, extra, "truncate", "-s", "1G", "sparse")
	run(t, extra, "ln", "d/setuid", "hard")

	run(t, "", "cp", "-a", source, m.path("cp"))
	sameTree(t, source, m.path("cp"))
	run(t, "", "cp", "-a", "--sparse=always", extra, m.path("extra"))
	sameTree(t, extra, m.path("extra"))

	run(t, m.dir, "tar", "-cf", "tree.tar", "cp", "extra/d", "extra/hard")
	run(t, m.dir, "mkdir", "untar")
	run(t, m.dir, "tar", "-xpf", "tree.tar", "-C", "untar")
	sameTree(t, m.path("cp"), m.path("untar/cp"))
	run(t, m.dir, "tar", "-df", "tree.tar")

	run(t, m.dir, "rsync", "-aH", "cp/", "rsync/")
	sameTree(t, source, m.path("rsync"))
	if out := run(t, m.dir, "rsync", "-aHi", "--checksum", "cp/", "rsync/"); out != "" {
		t.Errorf("rsync would still change:\n%s", tail(out))
	}

	run(t, m.dir, "mv", "rsync", "moved")
	sameTree(t, source, m.path("moved"))
	run(t, m.dir, "mv", m.path("tree.tar"), filepath.Join(m.base, "tree.tar")) // off the mount and on again
	run(t, m.dir, "mv", filepath.Join(m.base, "tree.tar"), m.path("tree.tar"))
	run(t, m.dir, "tar", "-df", "tree.tar")
	if a, b := run(t, source, "find", ".", "-name", "*.go"), run(t, m.path("moved"), "find", ".", "-name", "*.go"); strings.Count(a, "\n") != strings.Count(b, "\n") {
		t.Errorf("find sees %d Go files, want %d", strings.Count(b, "\n"), strings.Count(a, "\n"))
	}
	run(t, m.dir, "grep", "-rq", "^package", "moved")
	run(t, m.dir, "sh", "-c", "rm -rf *")
	wantEntries(t, m.dir)
	if n := m.vmstat().get(t, "sections"); n != 0 {
		t.Errorf("%d sections are left in an empty mount", n)
	}
}

// TestGit keeps a repository on the mount.
func TestGit(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "512M"})
	defer m.trimLoop(20 * time.Millisecond)()
	git := func(dir string, args ...string) string {
		t.Helper()
		return run(t, dir, "git", append([]string{"-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main",
			"-c", "safe.directory=*", "-c", "core.fsyncMethod=fsync"}, args...)...)
	}
	repo := m.path("repo")
	run(t, "", "cp", "-a", goSource(t, "net"), repo)
	git(repo, "init", "-q")
	git(repo, "add", ".")
	git(repo, "commit", "-qm", "one")
	for i := range 5 {
		run(t, repo, "sh", "-c", "find . -name '*.go' -not -path './.git/*' | head -200 | xargs sed -i 's/package/package /'")
		git(repo, "commit", "-qam", strings.Repeat("x", i+2))
	}
	git(repo, "repack", "-q")
	git(repo, "gc", "--aggressive", "--prune=now", "-q")
	git(repo, "fsck", "--full", "--strict")
	git(m.dir, "clone", "-q", "--no-hardlinks", repo, "clone")
	git(m.dir, "clone", "-q", "file://"+repo, "transport")
	for _, clone := range []string{"clone", "transport"} {
		git(m.path(clone), "fsck", "--full")
		if a, b := git(repo, "rev-parse", "HEAD^{tree}"), git(m.path(clone), "rev-parse", "HEAD^{tree}"); a != b {
			t.Errorf("%s has tree %s, want %s", clone, b, a)
		}
		if out := git(m.path(clone), "status", "--porcelain"); out != "" {
			t.Errorf("%s is not clean:\n%s", clone, tail(out))
		}
	}
	if out := git(repo, "status", "--porcelain"); out != "" {
		t.Errorf("the repository is not clean:\n%s", tail(out))
	}
}

// TestGoBuild builds this module from a copy on the mount, onto the mount, and runs the result there.
func TestGoBuild(t *testing.T) {
	m := mountMemfs(t, options{memory: "48M", pageFile: "512M"})
	defer m.trimLoop(20 * time.Millisecond)()
	root := filepath.Dir(strings.TrimSpace(run(t, "", "go", "env", "GOMOD")))
	run(t, root, "sh", "-c", `tar -cf - go.mod go.sum $(ls -d cmd fs mm mapping) | tar -xf - -C "$0"`, m.dir)
	run(t, m.dir, "sh", "-c", "mkdir tmp && GOTMPDIR=$PWD/tmp go build -o built/memfs ./cmd/memfs")
	if out := run(t, m.dir, m.path("built/memfs"), "--help"); !strings.Contains(out, "mount") {
		t.Errorf("the program that was built says %q", out)
	}
	// Its pages are taken away while it runs; the next instruction faults them in again.
	program := m.path("mmap")
	run(t, "", "gcc", "-O2", "-o", program, "testdata/mmap.c")
	run(t, "", program, "coherent", m.path("file"), "500")
}

// TestShell does what a shell does with files: scripts, pipes, here-documents, appending.
func TestShell(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.WriteFile(m.path("script"), []byte(`#!/bin/bash
set -eu
for i in $(seq 1 200); do echo "line $i" >> log; done
[ "$(wc -l < log)" = 200 ]
sort -r log | uniq | head -n 1 > first
[ "$(cat first)" = "line 99" ]
sed -i 's/line/LINE/' log
[ "$(grep -c LINE log)" = 200 ]
exec 3<> both; echo hello >&3; exec 3>&-; [ "$(cat both)" = hello ]
dd if=/dev/zero of=zeros bs=1M count=4 conv=fsync status=none
[ "$(stat -c %s zeros)" = 4194304 ]
cp --reflink=auto --sparse=auto zeros copy; cmp zeros copy
head -c 1000000 /dev/urandom | tee a > b; cmp a b
split -b 100000 a part.; cat part.* | cmp - a
gzip -k a; gunzip -c a.gz | cmp - a
ln a hard; ln -s a soft; cmp hard soft
mkfifo pipe 2>/dev/null && { echo through > pipe & [ "$(cat pipe)" = through ]; }
( flock 9; echo locked > state ) 9> lock
[ "$(cat state)" = locked ]
install -D -m 640 a deep/er/a; [ "$(stat -c %a deep/er/a)" = 640 ]
touch -d '2001-02-03 04:05:06.789012345' a; [ "$(stat -c %y a | cut -c1-29)" = "2001-02-03 04:05:06.789012345" ]
df . > /dev/null; du -s . > /dev/null; ls -laR . > /dev/null
`), 0o755))
	run(t, m.dir, "env", "TZ=UTC", m.path("script"))
}

// TestFio has four jobs of fio write at random with checksums in their blocks, read them back and compare, through
// write(2) and through a mapping, all at once and far past the memory.
func TestFio(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "1G"})
	stop := m.watchHost(64 << 20)
	var jobs sync.WaitGroup
	for job := range 4 {
		jobs.Go(func() {
			if err := m.fioVerify(job, 0, short("128m", "48m")); err != nil {
				t.Error(err)
			}
		})
	}
	jobs.Wait()
	stop()
}

// fioVerify runs one job of fio, of a kind that depends on its number and on the round, on a file of its own.
func (m *mount) fioVerify(job, round int, size string) error {
	engine := []string{"--ioengine=psync", "--bsrange=512-128k", "--bs_unaligned=1"}
	if job == 2 {
		engine = []string{"--ioengine=mmap", "--bsrange=4k-128k"}
	}
	name := "fio" + strconv.Itoa(job)
	args := append(engine, "--name="+name, "--filename="+m.path(name), "--size="+size, "--fsync="+strconv.Itoa(50+100*job),
		"--rw="+[]string{"randwrite", "write", "randrw"}[(round+job)%3], "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
		"--minimal", "--randseed="+strconv.Itoa(round))
	_, err := tryRun(m.base, "", "fio", args...)
	return err
}
