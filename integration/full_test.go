package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPageFileFull fills the mount until it has nothing left to promise. The writer is told, at the latest when it
// closes; what was accepted stays; what was refused cannot be read; and what is removed can be written again.
func TestPageFileFull(t *testing.T) {
	const size = 4 << 20
	m := mountMemfs(t, options{memory: "32M", pageFile: "64M"})
	free := freeBytes(t, m.dir)

	// The first round fills an empty mount, the second one what the first gave back.
	for round := range 2 {
		var accepted []int
		refused := -1
		for i := range 200 {
			err := writeContent(m.path(fmt.Sprint("file", i)), 100+i, size)
			if err == nil {
				accepted = append(accepted, i)
				continue
			}
			wantErrno(t, fmt.Sprintf("round %d: writing file %d", round, i), err, unix.ENOSPC)
			t.Logf("round %d: after %d files of 4 MiB: %v", round, len(accepted), err)
			refused = i
			break
		}
		if refused < 0 {
			t.Fatal("200 files of 4 MiB fit into 32 MiB of memory and 64 MiB of page file")
		}
		if got := len(accepted) * size; got < 64<<20 {
			t.Errorf("round %d: full after %d MiB, with 32 MiB of memory and 64 MiB of page file", round, got>>20)
		}
		if got := freeBytes(t, m.dir); got >= size {
			t.Errorf("round %d: statfs says %d bytes are free, yet 4 MiB were refused", round, got)
		}
		if m.vmstat().get(t, "commit_refusals") == 0 {
			t.Errorf("round %d: no refusal was counted", round)
		}

		// What can be read of the refused file is what memfs holds, not what the host kernel still has of the attempt.
		name := fmt.Sprint("file", refused)
		var now []byte
		if !within(5*time.Second, func() bool {
			now = mustRead(t, m.path(name))
			m.ctl("trim")
			return bytes.Equal(now, mustRead(t, m.path(name)))
		}) {
			t.Errorf("round %d: refused bytes could still be read", round)
		}
		want := block(100+refused, size)
		for at := 0; at+4096 <= len(now); at += 4096 {
			page := now[at : at+4096]
			if !bytes.Equal(page, want[at:at+4096]) && !bytes.Equal(page, make([]byte, 4096)) {
				t.Errorf("round %d: page %d of the refused file is neither what was written nor zeros", round, at/4096)
			}
		}

		// Overwriting what is there needs nothing new, so it works in a full mount.
		if err := writeInPlace(m.path("file0"), 100, size); err != nil {
			t.Errorf("round %d: overwriting in a full mount: %v", round, err)
		}
		for _, i := range accepted {
			wantContent(t, m.path(fmt.Sprint("file", i)), 100+i, size)
		}
		m.check()

		for _, i := range append(accepted, refused) {
			must(t, os.Remove(m.path(fmt.Sprint("file", i))))
		}
		if !within(5*time.Second, func() bool { return freeBytes(t, m.dir) >= free-free/50 }) {
			t.Errorf("round %d: %d bytes are free after removing everything, %d were at first", round, freeBytes(t, m.dir), free)
		}
		m.check()
	}
}

// TestNotFullYet has many programs ask for space at the same time, in large pieces and small ones, while there is far more
// than they ask for: the page file must grow for all of them, and nobody may be refused.
func TestNotFullYet(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "4G"})
	var programs sync.WaitGroup
	for i := range 8 {
		programs.Go(func() {
			f, err := os.Create(m.path(fmt.Sprint("large", i)))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for n := range int64(8) {
				if err := unix.Fallocate(int(f.Fd()), 0, n*40<<20, 40<<20); err != nil {
					t.Errorf("fallocate of 40 MiB after %d: %v", n, err)
					return
				}
			}
		})
		programs.Go(func() {
			for n := range 400 {
				if err := writeContent(m.path(fmt.Sprint("small", i)), n, 20<<10); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	programs.Wait()
	if n := m.vmstat().get(t, "commit_refusals"); n != 0 {
		t.Errorf("%d charges were refused", n)
	}
}

// TestFullThroughMapping stores through a mapping into more holes than there is room for. The host kernel learns of it
// only when it writes back: msync or close says so at the latest, or the store gets SIGBUS.
func TestFullThroughMapping(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "32M"})
	must(t, os.WriteFile(m.path("good"), block(9, 1<<20), 0o644))
	out, err := tryRun(m.dir, "", "python3", "-c", `
import mmap, os, sys
fd = os.open("big", os.O_RDWR | os.O_CREAT)
size = 256 << 20
os.ftruncate(fd, size)
m = mmap.mmap(fd, size)
for i in range(0, size, 4096):
    m[i] = 1 + i // 4096 % 250
try:
    m.flush()
    os.fsync(fd)
except OSError as e:
    print(e.errno)
    sys.exit(0)
print("accepted")
`)
	if err == nil && strings.TrimSpace(out) != fmt.Sprint(int(unix.ENOSPC)) {
		t.Errorf("storing 256 MiB into 32 MiB of memory and 32 MiB of page file: %q, want errno %d", out, int(unix.ENOSPC))
	} else if err != nil && !strings.Contains(err.Error(), "signal: bus error") {
		t.Error(err)
	}
	must(t, os.Remove(m.path("big")))
	wantFile(t, m.path("good"), block(9, 1<<20))
}

// TestNoSpaceWithoutPageFile lets a mount without a page file fill.
func TestNoSpaceWithoutPageFile(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", noPageFile: true})
	var err error
	n := 0
	for ; err == nil && n < 64; n++ {
		err = writeContent(m.path(fmt.Sprint(n)), n, 1<<20)
	}
	wantErrno(t, "writing 64 MiB without a page file", err, unix.ENOSPC)
	for i := range n - 1 {
		wantContent(t, m.path(fmt.Sprint(i)), i, 1<<20)
	}
	if n < 8 {
		t.Errorf("only %d MiB fit into 32 MiB of memory", n-1)
	}
}

// TestStoreReadErrors has the page file fail reads from some moment on: whoever needs one of those pages gets EIO, and
// nobody ever gets other bytes.
func TestStoreReadErrors(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "256M", flags: []string{"--inject", "read=EIO,rate=0.2,seed=3"}})
	right, failed := damaged(t, m)
	if right == 0 || failed == 0 {
		t.Errorf("%d files were read, %d failed: the test needs both", right, failed)
	}
	if m.vmstat().get(t, "read_errors") == 0 {
		t.Error("no read error was counted")
	}
}

// TestStoreFlippedBits has the page file give bits back that are not what was written. A checksum tells.
func TestStoreFlippedBits(t *testing.T) {
	for _, spec := range []string{"flip,rate=0.1,seed=5", "flip=write,rate=0.1,seed=5", "torn,rate=0.1,seed=5"} {
		t.Run(spec, func(t *testing.T) {
			m := mountMemfs(t, options{memory: "32M", pageFile: "256M", flags: []string{"--inject", spec}})
			right, failed := damaged(t, m)
			if right == 0 || failed == 0 {
				t.Errorf("%d files were read, %d failed: the test needs both", right, failed)
			}
			if m.vmstat().get(t, "checksum_errors") == 0 {
				t.Error("no checksum error was counted")
			}
		})
	}
}

// damaged writes files, has them paged out and reads them through a damaged page file: each must come back right or
// with EIO. It returns how many did which.
func damaged(t *testing.T, m *mount) (right, failed int) {
	t.Helper()
	const files, size = 128, 512 << 10
	for i := range files {
		if err := writeContent(m.path(fmt.Sprint(i)), i, size); err != nil {
			t.Fatal(err)
		}
	}
	m.pageOut()
	for i := range files {
		switch err := compareContent(m.path(fmt.Sprint(i)), i, size); {
		case err == nil:
			right++
		case errors.Is(err, unix.EIO):
			failed++
		default:
			t.Error(err)
		}
	}
	m.check()
	// A new file, which needs none of the damaged pages, is not affected as long as it is in memory.
	must(t, os.WriteFile(m.path("new"), block(1, 64<<10), 0o644))
	wantFile(t, m.path("new"), block(1, 64<<10))
	t.Logf("%d files right, %d with EIO", right, failed)
	return right, failed
}

// TestStoreWriteErrors has the page file fail writes. Pages that cannot be written stay in memory and go elsewhere in
// the page file; what was accepted is read back right.
func TestStoreWriteErrors(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "512M", flags: []string{"--inject", "write=EIO,rate=0.02,seed=1"}})
	const files, size = 96, 1 << 20
	var mu sync.Mutex
	accepted := map[int]bool{}
	var writers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			for i := w; i < files; i += 2 {
				err := writeContent(m.path(fmt.Sprint(i)), i, size)
				if err != nil && !errors.Is(err, unix.EIO) {
					t.Errorf("file %d: %v, want EIO if anything", i, err)
				}
				mu.Lock()
				accepted[i] = err == nil
				mu.Unlock()
			}
		})
	}
	writers.Wait()
	for i := range files {
		if err := compareContent(m.path(fmt.Sprint(i)), i, size); err != nil && accepted[i] {
			t.Errorf("an accepted file: %v", err)
		}
	}
	if m.vmstat().get(t, "write_errors") == 0 {
		t.Error("no write error was counted")
	}
	if len(accepted) < files/2 {
		t.Errorf("only %d of %d files were accepted, though just one write in fifty failed", len(accepted), files)
	}
}

// TestStoreDead has every write of the page file fail. The mount then has its memory and no more: it says so at some
// point, keeps what it accepted, and can be emptied and unmounted.
func TestStoreDead(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "256M", flags: []string{"--inject", "write=EIO"}})
	var accepted []int
	var err error
	for i := 0; i < 100 && err == nil; i++ {
		if err = writeContent(m.path(fmt.Sprint(i)), i, 1<<20); err == nil {
			accepted = append(accepted, i)
		}
	}
	if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing 100 MiB into 32 MiB of memory with a dead page file: %v, want EIO or ENOSPC", err)
	}
	for _, i := range accepted {
		wantContent(t, m.path(fmt.Sprint(i)), i, 1<<20)
	}
	m.check()
	entries, err := os.ReadDir(m.dir)
	must(t, err)
	for _, e := range entries {
		must(t, os.Remove(m.path(e.Name())))
	}
}

// TestPageFileCannotGrow has the page file refuse to grow, as on a full disk.
func TestPageFileCannotGrow(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "1G", flags: []string{"--inject", "grow=ENOSPC,after=2"}})
	var accepted []int
	var err error
	for i := 0; i < 300 && err == nil; i++ {
		if err = writeContent(m.path(fmt.Sprint(i)), i, 4<<20); err == nil {
			accepted = append(accepted, i)
		}
	}
	if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing past a page file that cannot grow: %v, want ENOSPC or EIO", err)
	}
	for _, i := range accepted {
		wantContent(t, m.path(fmt.Sprint(i)), i, 4<<20)
	}
}

// freeBytes is what statfs says can still be written.
func freeBytes(t testing.TB, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

func mustRead(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// wantFile fails the test unless the file holds exactly these bytes.
func wantFile(t testing.TB, name string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(name)
	switch {
	case err != nil:
		t.Error(err)
	case len(got) != len(want):
		t.Errorf("%s has %d bytes, want %d", name, len(got), len(want))
	case !bytes.Equal(got, want):
		t.Errorf("%s: %v at %d", name, errOtherBytes, firstDifference(got, want))
	}
}

// writeInPlace writes a file's content again without truncating it first.
func writeInPlace(name string, number, size int) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.Write(block(number, size)); err != nil {
		f.Close()
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
