//go:build soak

package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestSoakStressNG is TestStressNG for longer, at two sizes of memory.
func TestSoakStressNG(t *testing.T) {
	for _, memory := range []string{"16M", "64M"} {
		t.Run(memory, func(t *testing.T) {
			m := mountMemfs(t, options{memory: memory, pageFile: "1G", limit: 15 * time.Minute})
			defer m.trimLoop(20 * time.Millisecond)()
			stressNGRun(t, m.dir, 60)
		})
	}
}

// TestSoakGoModule has a module with its tests, the compiler's cache and its temporary files all on the mount, beside a
// program that writes synchronously. The cache is empty at first, so that the standard library is compiled as well.
func TestSoakGoModule(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "2G", limit: 20 * time.Minute})
	defer m.busy()()
	run(t, "..", "sh", "-c", `tar -cf - go.mod go.sum $(ls -d cmd fs mm mapping) | tar -xf - -C "$0"`, m.dir)
	for _, dir := range []string{"cache", "tmp", "built"} {
		must(t, os.Mkdir(m.path(dir), 0o755))
	}
	environment := "export GOCACHE=$PWD/cache GOTMPDIR=$PWD/tmp TMPDIR=$PWD/tmp GOFLAGS=-mod=mod; "
	run(t, m.dir, "sh", "-c", environment+"go build -o built/memfs ./cmd/memfs && built/memfs --help")
	run(t, m.dir, "sh", "-c", environment+"go vet ./mm/... && go test -short ./mm/... ./mapping/...")
	if out := run(t, m.dir, "sh", "-c", environment+"go build -v -o built/again ./cmd/memfs 2>&1 && cmp built/memfs built/again"); out != "" {
		t.Errorf("what had been built before was not found in the cache:\n%s", tail(out))
	}
}

// TestSoakGit keeps a repository of thousands of files, which is packed and proved, beside a program that writes
// synchronously.
func TestSoakGit(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "2G", limit: 20 * time.Minute})
	defer m.busy()()
	must(t, os.Mkdir(m.path("repo"), 0o755))
	run(t, "", "cp", "-a", goSource(t, "cmd"), m.path("repo/cmd"))
	out := run(t, m.path("repo"), "sh", "-euc", `
git() { command git -c user.name=a -c user.email=a@b -c init.defaultBranch=main -c core.fsync=all "$@"; }
git init -q; git add .; git commit -qm one
for i in 1 2 3; do
	find . -name '*.go' -not -path './.git/*' | awk "NR % 7 == $i" | xargs sed -i "1i // change $i"
	git commit -qam "change $i"
done
git gc -q --aggressive --prune=now; git fsck --full --strict; git status --porcelain; git ls-files | wc -l
`)
	var files int
	if _, err := fmt.Sscan(strings.TrimSpace(out), &files); err != nil || files < 2000 {
		t.Errorf("the repository is not clean, or small: %q", tail(out))
	}
}

// TestSoakEngines has fio write and verify four times the memory through each of the kernel's interfaces.
func TestSoakEngines(t *testing.T) {
	for _, engine := range []string{"libaio", "io_uring", "mmap", "splice", "pvsync2"} {
		for _, direct := range []string{"0", "1"} {
			if direct == "1" && (engine == "mmap" || engine == "splice") {
				continue
			}
			t.Run(engine+" direct="+direct, func(t *testing.T) {
				m := mountMemfs(t, options{memory: "16M", pageFile: "512M", limit: 10 * time.Minute})
				defer m.trimLoop(50 * time.Millisecond)()
				m.fioEngine(t, engine, direct)
			})
		}
	}
}

func (m *mount) fioEngine(t *testing.T, engine, direct string) {
	run(t, m.base, "fio", "--name=engine", "--filename="+m.path("fio"), "--size=64m", "--ioengine="+engine, "--direct="+direct,
		"--iodepth=16", "--rw=randwrite", "--bsrange=4k-64k", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--minimal")
}
