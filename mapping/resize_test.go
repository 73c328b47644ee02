package mapping_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"iter"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"memfs/mapping"
	"memfs/mm"
	"memfs/mm/store"

	"golang.org/x/sys/unix"
)

// TestResizeUnderLoad runs programs on files of 31M together while the memory goes up and down between 16M and 64M, and
// the size with it, with every invariant proved after each step. Nothing may be refused: the least memory with the page
// file has room for all.
func TestResizeUnderLoad(t *testing.T) {
	const workers, pages, slots = 4, 2000, 24 << 10
	least := 10 // resizes
	if testing.Short() {
		least = 4
	}
	s, err := mm.New(mm.Config{
		Memory: 16 << 20, MaxMemory: 64 << 20, Inodes: 100,
		PageFiles: []mm.PageFileConfig{{Name: "test", Store: store.NewMem(), Max: slots}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	hosts := make([]*host, workers)
	stop := make(chan struct{})
	var filling, programs sync.WaitGroup
	for w := range hosts {
		h := &host{pages: make(map[int64]*hostPage)}
		h.section = mapping.NewSection(s, h)
		hosts[w] = h
		filling.Add(1)
		programs.Go(func() { storeAndRead(t, h, uint64(w), pages, filling.Done, stop) })
	}
	full := make(chan struct{})
	go func() { filling.Wait(); close(full) }()
	rnd := rand.New(rand.NewPCG(7, 7))
	var added, retired uint64
	steps, afterwards := 0, 0
	for afterwards < least {
		memory := (16 + rnd.Uint64N(49)) << 20
		r, err := s.SetMemory(memory)
		if err != nil {
			t.Fatalf("memory %dM: %v\n%+v", memory>>20, err, s.Snapshot())
		}
		added, retired = added+r.Added, retired+r.Retired
		snap := s.Snapshot()
		if snap.Budget.Memory != memory || snap.Frames != snap.Budget.Frames || snap.Retired != 0 {
			t.Fatalf("memory %dM: %+v, %d frames, %d retired", memory>>20, snap.Budget, snap.Frames, snap.Retired)
		}
		if err := s.SetSize((workers*pages + rnd.Uint64N(100)) * page); err != nil {
			t.Fatalf("a size for all that there can be: %v", err)
		}
		for _, err := range s.Check() {
			t.Errorf("at %dM: %v", memory>>20, err)
		}
		select {
		case <-full:
			afterwards++
		default:
		}
		steps++
		time.Sleep(10 * time.Millisecond)
	}
	close(stop)
	programs.Wait()
	snap := s.Snapshot()
	if added == 0 || retired == 0 || snap.Counters.PagesInput == 0 || snap.Counters.CommitRefusals != 0 {
		t.Errorf("%d resizes, %d frames added, %d retired: %+v", steps, added, retired, snap.Counters)
	}
	t.Logf("%d resizes, %d frames added, %d retired, %d pages in, %d out", steps, added, retired,
		snap.Counters.PagesInput, snap.Counters.PagesOutput)
	for _, h := range hosts {
		h.section.Delete()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// storeAndRead fills a file, and then stores to random pages of it and reads others until it is to stop. Each page says
// which one it is and which store to it was the last.
func storeAndRead(t *testing.T, h *host, seed uint64, pages int64, filled func(), stop <-chan struct{}) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	stores := make([]uint32, pages)
	f := workerFatal{t}
	store := func(n int64) {
		stores[n]++
		h.store(f, n*page, stamped(seed, n, stores[n]))
	}
	for n := range pages {
		store(n)
	}
	filled()
	for {
		select {
		case <-stop:
			for n := range pages {
				if got := h.read(f, n*page, page); !bytes.Equal(got, stamped(seed, n, stores[n])) {
					t.Errorf("at the end, worker %d, page %d: %s", seed, n, firstDifference(got, stamped(seed, n, stores[n])))
				}
			}
			return
		default:
		}
		for n := range near(rnd.Int64N(pages), pages) {
			store(n)
		}
		for n := range near(rnd.Int64N(pages), pages) {
			if got := h.read(f, n*page, page); !bytes.Equal(got, stamped(seed, n, stores[n])) {
				t.Errorf("worker %d, page %d: %s", seed, n, firstDifference(got, stamped(seed, n, stores[n])))
				return
			}
		}
		time.Sleep(time.Millisecond) // the host kernel has processors to itself that the fake one has not
	}
}

// near yields the pages of the view that a page is in.
func near(n, pages int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		first := n &^ (mm.ViewPages - 1)
		for p := first; p < min(first+mm.ViewPages, pages) && yield(p); p++ {
		}
	}
}

// stamped is what a page holds after so many stores to it.
func stamped(file uint64, n int64, stores uint32) []byte {
	b := make([]byte, page)
	for i := 0; i < page; i += 16 {
		binary.LittleEndian.PutUint64(b[i:], uint64(n)<<8|file)
		binary.LittleEndian.PutUint32(b[i+8:], stores)
	}
	return b
}

// TestResizeRefused: what is promised stays promised, and a memory that cannot keep it is refused with the one that
// can.
func TestResizeRefused(t *testing.T) {
	s, h, want := filled(t, store.NewMem(), 0)
	was := s.Snapshot()
	for _, memory := range []uint64{16 << 20, 15 << 20, 0, 65 << 20, 1 << 50} {
		r, err := s.SetMemory(memory)
		if !errors.Is(err, mm.StatusInvalidParameter) || r.Budget != was.Budget {
			t.Errorf("memory %d: %+v, %v", memory, r, err)
		}
		t.Log(err)
		if got := s.Snapshot(); got.Budget != was.Budget || got.Frames != was.Frames || got.HostLimit != was.HostLimit ||
			got.CommitLimit != was.CommitLimit {
			t.Errorf("a refused change has changed %+v to %+v", was, got)
		}
	}
	// Just what is promised fits, and one more page does not.
	r, err := s.SetMemory(least(t, s))
	if err != nil {
		t.Fatal(err)
	}
	check(t, s)
	const part = 1 << 20
	for i := 0; i < len(want); i += part {
		if got := h.read(t, int64(i), part); !bytes.Equal(got, want[i:i+part]) {
			t.Fatalf("at %+v, MiB %d: %s", r, i/part, firstDifference(got, want[i:i+part]))
		}
		must(t, s.TrimAll) // what the host holds above its limit, it holds at the price of delays
	}
	end(t, s, h)
}

// least is the least memory, in whole MiB, that can keep what is promised.
func least(t *testing.T, s *mm.System) uint64 {
	t.Helper()
	snap := s.Snapshot()
	for m := uint64(16 << 20); ; m += 1 << 20 {
		b, err := mm.Plan(mm.Config{Memory: m, Inodes: 100})
		if err != nil {
			t.Fatal(err)
		}
		if b.CommitLimit+snap.Budget.PageFile >= snap.Commit {
			return m
		}
	}
}

// filled is a machine of 32M that can grow to 64M, with 20M of data in it.
func filled(t *testing.T, pageFile mm.Store, slots uint64) (*mm.System, *host, []byte) {
	t.Helper()
	c := mm.Config{Memory: 32 << 20, MaxMemory: 64 << 20, Inodes: 100, Patience: 50 * time.Millisecond}
	if slots > 0 {
		c.PageFiles = []mm.PageFileConfig{{Name: "test", Store: pageFile, Max: slots}}
	}
	s, err := mm.New(c)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	h := &host{pages: make(map[int64]*hostPage)}
	h.section = mapping.NewSection(s, h)
	want := make([]byte, 20<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(want); i += 512 {
		want[i] = byte(rnd.Uint32())
	}
	for i := 0; i < len(want); i += 1 << 20 {
		h.store(t, int64(i), want[i:i+1<<20])
		must(t, s.TrimAll)
	}
	return s, h, want
}

func end(t *testing.T, s *mm.System, h *host) {
	t.Helper()
	h.section.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestResizeStuck: with a page file that takes no more pages, a memory that needs it for what is not there yet goes
// back to what can be had; as soon as the page file works again, the rest can be had as well.
func TestResizeStuck(t *testing.T) {
	flaky := store.NewFlaky(store.NewMem(), 1)
	s, h, want := filled(t, flaky, 16<<10)
	defer func() { end(t, s, h) }()
	was := s.Snapshot()
	must(t, s.FlushModified)
	flaky.SetFaults(store.Fault{Kind: store.Fail, Ops: store.OpWrite, Errno: unix.EIO})
	for i := range 16 { // which fit into 32M, and not into 16M
		h.store(t, int64(i)<<20, want[i<<20:(i+1)<<20])
		must(t, s.TrimAll)
	}
	r, err := s.SetMemory(16 << 20)
	t.Log(err)
	if !errors.Is(err, mm.StatusBusy) || r.Budget.Memory <= 16<<20 || r.Budget.Memory > was.Budget.Memory {
		t.Fatalf("with a dead page file: %+v, %v", r, err)
	}
	if got := s.Snapshot(); got.Frames != r.Budget.Frames || got.Retired != 0 || got.Budget != r.Budget ||
		got.HostLimit*page >= r.Budget.Memory/2 {
		t.Fatalf("after %+v: %+v", r, got)
	}
	check(t, s)
	flaky.SetFaults()
	// Its patience is short, so that a busy machine may take more than one try.
	var resizing mm.Resized
	written := uint64(0)
	for deadline := time.Now().Add(time.Minute); ; {
		before := s.Budget().Frames
		resizing, err = s.SetMemory(16 << 20)
		written += resizing.Written
		if err == nil && resizing.Retired == before-resizing.Budget.Frames {
			break
		}
		if !errors.Is(err, mm.StatusBusy) || time.Now().After(deadline) {
			t.Fatalf("with a page file that works again: %+v, %v", resizing, err)
		}
	}
	if written == 0 {
		t.Error("nothing was written for it")
	}
	check(t, s)
	for i := 0; i < len(want); i += 1 << 20 {
		if got := h.read(t, int64(i), 1<<20); !bytes.Equal(got, want[i:i+1<<20]) {
			t.Fatalf("MiB %d: %s", i>>20, firstDifference(got, want[i:i+1<<20]))
		}
		must(t, s.TrimAll)
	}
}

// TestSize: files hold no more than the size says, records are not counted, and a size below what they hold is refused.
func TestSize(t *testing.T) {
	s, err := mm.New(mm.Config{Memory: 16 << 20, Size: 64 * page, Inodes: 100})
	if err != nil {
		t.Fatal(err)
	}
	h := &host{pages: make(map[int64]*hostPage)}
	h.section = mapping.NewSection(s, h)
	defer func() { end(t, s, h) }()
	write := func(off, n int64) error { return h.section.Write(off*page, bytes.Repeat([]byte{5}, int(n)*page)) }
	if err := s.ChargeRecord(100 * page); err != nil {
		t.Fatalf("records count for the size: %v", err)
	}
	defer s.ReleaseRecord(100 * page)
	if err := write(0, 60); err != nil {
		t.Fatal(err)
	}
	if err := write(60, 5); !errors.Is(err, mm.StatusCommitmentLimit) {
		t.Fatalf("65 of 64 pages: %v", err)
	}
	if err := h.section.Allocate(60*page, 5*page, true); !errors.Is(err, mm.StatusCommitmentLimit) {
		t.Fatalf("promising 65 of 64 pages: %v", err)
	}
	if err := write(60, 4); err != nil {
		t.Fatalf("64 of 64 pages: %v", err)
	}
	if err := write(0, 64); err != nil {
		t.Fatalf("overwriting in a full file: %v", err)
	}
	if err := s.SetSize(63 * page); !errors.Is(err, mm.StatusInvalidParameter) || s.Budget().Size != 64*page {
		t.Fatalf("a size below what is in use: %v, and it is %d", err, s.Budget().Size)
	}
	check(t, s)
	h.truncate(t, 10*page)
	if err := s.SetSize(10*page - 1); err != nil { // a page is never cut in two
		t.Fatal(err)
	}
	if err := write(10, 1); !errors.Is(err, mm.StatusCommitmentLimit) {
		t.Fatalf("11 of 10 pages: %v", err)
	}
	if err := s.SetSize(0); err != nil {
		t.Fatal(err)
	}
	if err := write(10, 500); err != nil {
		t.Fatalf("without a size: %v", err)
	}
	if got := s.Snapshot(); got.FileCommit != 510 || got.Budget.Size != 0 {
		t.Fatalf("files hold %d pages, want 510; the size is %d", got.FileCommit, got.Budget.Size)
	}
	check(t, s)
}
