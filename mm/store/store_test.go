package store_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"memfs/mm"
	"memfs/mm/store"
)

var (
	_ mm.Store = (*store.File)(nil)
	_ mm.Store = (*store.Mem)(nil)
	_ mm.Store = (*store.Flaky)(nil)
)

// stores are all stores that the suite runs over.
var stores = map[string]func(t *testing.T) store.Store{
	"File": func(t *testing.T) store.Store { return openFile(t, t.TempDir()) },
	"FileInMemory": func(t *testing.T) store.Store {
		dir, err := os.MkdirTemp("/dev/shm", "memfs-store-test-")
		if err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		return openFile(t, dir)
	},
	"Mem":   func(t *testing.T) store.Store { return store.NewMem() },
	"Flaky": func(t *testing.T) store.Store { return store.NewFlaky(store.NewMem(), 1) },
}

func openFile(t *testing.T, path string) *store.File {
	t.Helper()
	f, err := store.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// pages makes aligned buffers of the given numbers of slots, filled with bytes that depend on tag, slot and place.
func pages(tag uint64, slot uint64, counts ...int) [][]byte {
	var bufs [][]byte
	for _, n := range counts {
		raw := make([]byte, (n+1)*store.SlotSize)
		skip := -uintptr(unsafe.Pointer(&raw[0])) & (store.SlotSize - 1)
		buf := raw[skip : skip+uintptr(n*store.SlotSize)]
		for len(buf) > 0 {
			r := rand.New(rand.NewPCG(tag, slot))
			for i := 0; i < store.SlotSize; i += 8 {
				*(*uint64)(unsafe.Pointer(&buf[i])) = r.Uint64()
			}
			slot++
			buf = buf[store.SlotSize:]
		}
		bufs = append(bufs, raw[skip:skip+uintptr(n*store.SlotSize)])
	}
	return bufs
}

func blank(counts ...int) [][]byte {
	bufs := pages(0, 0, counts...)
	for _, b := range bufs {
		for i := range b {
			b[i] = 0xAA
		}
	}
	return bufs
}

func join(bufs [][]byte) []byte { return bytes.Join(bufs, nil) }

func each(t *testing.T, f func(t *testing.T, s store.Store)) {
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			f(t, s)
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErr checks that err is a store.Error of that operation and slot.
func wantErr(t *testing.T, err error, op string, slot uint64) *store.Error {
	t.Helper()
	e := (*store.Error)(nil)
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want a store.Error", err)
	}
	if e.Op != op || e.Slot != slot || e.Path == "" || e.Err == nil {
		t.Fatalf("error %+v, want one of %s at slot %d", e, op, slot)
	}
	return e
}

func TestRoundTrip(t *testing.T) {
	each(t, func(t *testing.T, s store.Store) {
		check(t, s.Grow(5000))
		// One slot; several buffers of several slots; more vectors than one call takes; across Mem's chunks.
		many := make([]int, 1500)
		for i := range many {
			many[i] = 1
		}
		many[7], many[1100] = 3, 0
		for _, c := range []struct {
			slot   uint64
			counts []int
		}{{0, []int{1}}, {4999, []int{1}}, {17, []int{2, 1, 5}}, {1020, []int{4, 1, 8}}, {1500, many}} {
			want := pages(c.slot+1, c.slot, c.counts...)
			before := join(want)
			check(t, s.WriteSlots(c.slot, want))
			if !bytes.Equal(before, join(want)) {
				t.Fatal("a write changed its buffers")
			}
			got := blank(c.counts...)
			check(t, s.ReadSlots(c.slot, got))
			if !bytes.Equal(join(got), before) {
				t.Fatalf("slot %d, %d buffers: what was read is not what was written", c.slot, len(c.counts))
			}
		}
		// Read with other boundaries than written with.
		got := blank(3, 5)
		check(t, s.ReadSlots(17, got))
		if !bytes.Equal(join(got), join(pages(18, 17, 8))) {
			t.Fatal("regrouped read differs")
		}
	})
}

func TestNeverWrittenIsZero(t *testing.T) {
	each(t, func(t *testing.T, s store.Store) {
		check(t, s.Grow(8))
		check(t, s.WriteSlots(0, pages(1, 0, 4)))
		check(t, s.Grow(2000))
		got := blank(2)
		check(t, s.ReadSlots(1500, got))
		if !bytes.Equal(got[0], make([]byte, 2*store.SlotSize)) {
			t.Fatal("a slot that was never written is not zeros")
		}
		got = blank(4)
		check(t, s.ReadSlots(0, got))
		if !bytes.Equal(got[0], pages(1, 0, 4)[0]) {
			t.Fatal("growing changed a slot")
		}
	})
}

func TestBounds(t *testing.T) {
	each(t, func(t *testing.T, s store.Store) {
		wantErr(t, s.ReadSlots(0, blank(1)), "read", 0)
		check(t, s.Grow(10))
		check(t, s.Grow(3)) // never shrinks
		check(t, s.WriteSlots(9, pages(1, 9, 1)))
		wantErr(t, s.WriteSlots(9, pages(1, 9, 2)), "write", 9)
		wantErr(t, s.WriteSlots(10, pages(1, 10, 1)), "write", 10)
		wantErr(t, s.ReadSlots(math.MaxUint64, blank(2)), "read", math.MaxUint64)
		wantErr(t, s.ReadSlots(0, [][]byte{make([]byte, 100)}), "read", 0)
		wantErr(t, s.Discard(5, 6), "discard", 5)
		wantErr(t, s.Discard(math.MaxUint64, 2), "discard", math.MaxUint64)
	})
}

func TestDiscard(t *testing.T) {
	each(t, func(t *testing.T, s store.Store) {
		check(t, s.Grow(3000))
		check(t, s.WriteSlots(0, pages(1, 0, 3000)))
		check(t, s.Discard(500, 1100))
		check(t, s.Discard(7, 0))
		for _, r := range []struct {
			slot uint64
			n    int
		}{{0, 500}, {1600, 1400}} {
			got := blank(r.n)
			check(t, s.ReadSlots(r.slot, got))
			if !bytes.Equal(got[0], pages(1, r.slot, r.n)[0]) {
				t.Fatalf("discarding its neighbours changed slot %d or one of the %d after it", r.slot, r.n)
			}
		}
		check(t, s.WriteSlots(800, pages(2, 800, 5)))
		got := blank(5)
		check(t, s.ReadSlots(800, got))
		if !bytes.Equal(got[0], pages(2, 800, 5)[0]) {
			t.Fatal("a discarded slot does not keep what is written to it afterwards")
		}
	})
}

func TestClosed(t *testing.T) {
	each(t, func(t *testing.T, s store.Store) {
		check(t, s.Grow(4))
		check(t, s.Close())
		wantErr(t, s.ReadSlots(0, blank(1)), "read", 0)
		wantErr(t, s.WriteSlots(0, blank(1)), "write", 0)
		if err := s.Grow(8); !errors.Is(err, fs.ErrClosed) {
			t.Fatalf("grow after close: %v", err)
		}
	})
}

func TestConcurrent(t *testing.T) {
	each(t, func(t *testing.T, s store.Store) {
		const workers, own = 4, 64
		check(t, s.Grow(workers*own))
		var wg sync.WaitGroup
		for w := range uint64(workers) {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(w, 0))
				for i := range uint64(60) {
					slot := w*own + r.Uint64N(own-4)
					want := pages(i, slot, 1, 3)
					got := blank(2, 2)
					if err := errors.Join(s.WriteSlots(slot, want), s.ReadSlots(slot, got)); err != nil {
						t.Error(err)
						return
					}
					if !bytes.Equal(join(got), join(want)) {
						t.Errorf("slot %d: read back other bytes", slot)
						return
					}
				}
			})
		}
		wg.Go(func() {
			for n := uint64(0); n < 40; n++ {
				if err := s.Grow(workers*own + n*50); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Wait()
	})
}

// allocated is how many bytes of the disk a page file has, which others' files do not change.
func allocated(t *testing.T, f *store.File) int64 {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	for _, fd := range fds {
		link := filepath.Join("/proc/self/fd", fd.Name())
		if to, _ := os.Readlink(link); to == f.Name()+" (deleted)" {
			var st unix.Stat_t
			check(t, unix.Stat(link, &st))
			return st.Blocks * 512
		}
	}
	t.Fatal("the page file is not open")
	return 0
}

func TestFileLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	named := filepath.Join(dir, "pagefile")
	for _, path := range []string{dir, named} {
		f := openFile(t, path)
		check(t, f.Grow(16))
		if path == named && f.Name() != named || !strings.HasPrefix(f.Name(), dir+"/") {
			t.Errorf("made at %s: Name %s", path, f.Name())
		}
		entries, err := os.ReadDir(dir)
		check(t, err)
		if len(entries) != 0 {
			t.Errorf("while open, the directory holds %v", entries)
		}
		check(t, f.Close())
		check(t, f.Close()) // again is nothing
	}
}

func TestFileRefusals(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	check(t, os.WriteFile(there, []byte("precious"), 0o600))
	check(t, os.Symlink(there, filepath.Join(dir, "link")))
	check(t, os.Symlink(filepath.Join(dir, "none"), filepath.Join(dir, "dangling")))
	for path, want := range map[string]error{
		there:                            fs.ErrExist,
		filepath.Join(dir, "link"):       fs.ErrExist,
		filepath.Join(dir, "dangling"):   fs.ErrExist,
		filepath.Join(dir, "no", "file"): fs.ErrNotExist,
		"/dev/null":                      fs.ErrExist,
	} {
		f, err := store.OpenFile(path)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v, want %v with the path", path, err, want)
		}
	}
	if got, _ := os.ReadFile(there); string(got) != "precious" {
		t.Error("an existing file was changed")
	}
	check(t, os.Symlink(dir, filepath.Join(dir, "folder")))
	check(t, openFile(t, filepath.Join(dir, "folder")).Close()) // a directory may be named through a link
}

// A page file reserves what it grows by, gives holes back, and refuses what the disk cannot hold, keeping its size.
func TestFileSpace(t *testing.T) {
	dir := t.TempDir()
	f := openFile(t, dir)
	defer f.Close()
	check(t, f.Grow(256))
	if !f.Reserves() {
		t.Skip("the filesystem of the temporary directory cannot reserve space")
	}
	free, err := store.FreeSpace(dir)
	check(t, err)
	tooMany := free/store.SlotSize + 1<<20
	if tooMany > 1<<32-1 {
		tooMany = 1 << 50 // beyond any file
	}
	err = f.Grow(tooMany)
	e := wantErr(t, err, "grow", 256)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EFBIG) {
		t.Errorf("growing past the disk: %v", e)
	}
	if f.Size() != 256 {
		t.Errorf("after a refused growth the size is %d slots", f.Size())
	}
	if kept := allocated(t, f); kept > 2*256*store.SlotSize {
		t.Errorf("a refused growth kept %d bytes of the disk", kept)
	}
	check(t, f.WriteSlots(255, pages(1, 255, 1)))
	check(t, f.Grow(512))
}

func TestFlakyNth(t *testing.T) {
	f := store.NewFlaky(store.NewMem(), 1, store.Fault{Kind: store.Fail, Ops: store.OpWrite, Errno: unix.ENOSPC, After: 2, Count: 1})
	check(t, f.Grow(16))
	check(t, f.WriteSlots(0, pages(1, 0, 1)))
	check(t, f.WriteSlots(1, pages(1, 1, 1)))
	err := f.WriteSlots(2, pages(1, 2, 1))
	if wantErr(t, err, "write", 2); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("third write: %v", err)
	}
	check(t, f.WriteSlots(2, pages(1, 2, 1)))
	check(t, f.ReadSlots(2, blank(1)))
	if f.Injected() != 1 {
		t.Errorf("%d faults injected, want 1", f.Injected())
	}
	f.SetFaults(store.Fault{Ops: store.OpGrow | store.OpDiscard, Errno: unix.EIO})
	wantErr(t, f.Grow(32), "grow", 0)
	wantErr(t, f.Discard(3, 1), "discard", 3)
	f.SetFaults()
	check(t, f.Grow(32))
}

func TestFlakyRate(t *testing.T) {
	run := func(seed uint64) (failed []int) {
		f := store.NewFlaky(store.NewMem(), seed, store.Fault{Ops: store.OpRead, Errno: unix.EIO, Rate: 0.25})
		check(t, f.Grow(1))
		buf := blank(1)
		for i := range 400 {
			if f.ReadSlots(0, buf) != nil {
				failed = append(failed, i)
			}
		}
		return failed
	}
	one, again, two := run(1), run(1), run(2)
	if len(one) < 50 || len(one) > 150 {
		t.Errorf("%d of 400 reads failed at rate 0.25", len(one))
	}
	same := func(a, b []int) bool {
		return len(a) == len(b) && len(a) > 0 && a[0] == b[0] && a[len(a)-1] == b[len(b)-1] && a[len(a)/2] == b[len(b)/2]
	}
	if !same(one, again) || same(one, two) {
		t.Error("the faults do not follow the seed")
	}
}

func differingBits(a, b []byte) (n int) {
	for i := range a {
		for x := a[i] ^ b[i]; x != 0; x &= x - 1 {
			n++
		}
	}
	return n
}

func TestFlakyFlip(t *testing.T) {
	f := store.NewFlaky(openFile(t, t.TempDir()), 3)
	defer f.Close()
	check(t, f.Grow(8))
	want := pages(1, 0, 1, 2)
	check(t, f.WriteSlots(0, want))

	f.SetFaults(store.Fault{Kind: store.Flip, Ops: store.OpRead, Count: 1})
	got := blank(3)
	check(t, f.ReadSlots(0, got))
	if n := differingBits(join(got), join(want)); n != 1 {
		t.Errorf("a flipped read differs in %d bits", n)
	}
	check(t, f.ReadSlots(0, got))
	if n := differingBits(join(got), join(want)); n != 0 {
		t.Errorf("the read after it differs in %d bits", n)
	}

	f.SetFaults(store.Fault{Kind: store.Flip, Ops: store.OpWrite, Count: 1})
	before := join(want)
	check(t, f.WriteSlots(0, want))
	if !bytes.Equal(before, join(want)) {
		t.Error("a flipped write changed the caller's buffer")
	}
	check(t, f.ReadSlots(0, got))
	if n := differingBits(join(got), join(want)); n != 1 {
		t.Errorf("a flipped write stored %d wrong bits", n)
	}
}

func TestFlakyTorn(t *testing.T) {
	for _, n := range []int{1, 2, 5} {
		f := store.NewFlaky(openFile(t, t.TempDir()), 3)
		check(t, f.Grow(8))
		old, now := pages(1, 0, n), pages(2, 0, n)
		check(t, f.WriteSlots(0, old))
		f.SetFaults(store.Fault{Kind: store.Torn, Ops: store.OpWrite, Count: 1},
			store.Fault{Kind: store.Torn, Ops: store.OpWrite, Errno: unix.EIO, After: 1})
		check(t, f.WriteSlots(0, now)) // silently
		got := blank(n)
		check(t, f.ReadSlots(0, got))
		cut := 0
		for cut < len(got[0]) && got[0][cut] == now[0][cut] {
			cut++
		}
		if cut%512 > 8 || cut/store.SlotSize*store.SlotSize == cut || !bytes.Equal(got[0][cut/512*512:], old[0][cut/512*512:]) {
			t.Errorf("%d slots: torn at byte %d", n, cut)
		}
		if err := f.WriteSlots(0, now); !errors.Is(err, unix.EIO) {
			t.Errorf("a torn write with an errno: %v", err)
		}
		check(t, f.Close())
	}
}

func TestFlakySlow(t *testing.T) {
	f := store.NewFlaky(store.NewMem(), 1, store.Fault{Kind: store.Slow, Ops: store.OpRead, Delay: 30 * time.Millisecond})
	check(t, f.Grow(1))
	start := time.Now()
	check(t, f.ReadSlots(0, blank(1)))
	if d := time.Since(start); d < 30*time.Millisecond {
		t.Errorf("a slow read took %v", d)
	}
}

func TestParseFaults(t *testing.T) {
	seed, faults, err := store.ParseFaults("write=ENOSPC,after=100,count=1; read,rate=0.5,seed=0x7;flip=write;torn=eio;slow=5ms,on=grow;discard=5")
	check(t, err)
	want := []store.Fault{
		{Ops: store.OpWrite, Errno: unix.ENOSPC, After: 100, Count: 1},
		{Ops: store.OpRead, Errno: unix.EIO, Rate: 0.5},
		{Kind: store.Flip, Ops: store.OpWrite},
		{Kind: store.Torn, Ops: store.OpWrite, Errno: unix.EIO},
		{Kind: store.Slow, Ops: store.OpGrow, Delay: 5 * time.Millisecond},
		{Ops: store.OpDiscard, Errno: unix.EIO},
	}
	if seed != 7 || len(faults) != len(want) {
		t.Fatalf("seed %d, faults %+v", seed, faults)
	}
	for i := range want {
		if faults[i] != want[i] {
			t.Errorf("fault %d: %+v, want %+v", i, faults[i], want[i])
		}
	}
	for _, bad := range []string{"", "burn", "read=ENOTHING", "read,after=-1", "read,rate=0", "read,rate=2", "read,rate=NaN", "flip=grow",
		"slow=soon", "read,on=write", "read,when=now", "slow=1s,on=noon", "read=EIO;"} {
		if _, _, err := store.ParseFaults(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestFreeSpace(t *testing.T) {
	if n, err := store.FreeSpace(t.TempDir()); err != nil || n == 0 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := store.FreeSpace("/no/such/place"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nowhere: %v", err)
	}
}
