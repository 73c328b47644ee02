package mapping_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"memfs/mapping"
	"memfs/mm"
	"memfs/mm/store"

	"golang.org/x/sys/unix"
)

// TestStress runs programs on files of their own and on a shared one, at once with the daemons and with commands, on a
// machine a quarter the size of the data. Each page of a file carries what the last store to it said, so that a lost or
// misplaced page shows.
func TestStress(t *testing.T) {
	const pages, workers = 600, 4
	c := config{frames: 600, host: 200, slots: 8192, encrypt: true, compressed: 200 << 10}
	s := c.start(t)
	s.Start()
	stop := make(chan struct{})
	var wg, commands sync.WaitGroup
	hosts := make([]*host, workers)
	paged := func() bool {
		c := s.Snapshot().Counters
		return c.PagesInput > 0 && c.PagesOutput > 0 && c.TransitionFaults > 0
	}
	for w := range hosts {
		h := &host{pages: make(map[int64]*hostPage)}
		h.section = mapping.NewSection(s, h)
		hosts[w] = h
		wg.Go(func() { runWorker(t, h, uint64(w), pages, paged) })
	}
	for seed := range uint64(2) {
		wg.Go(func() { runProcess(t, s.NewSpace(), seed, paged) })
	}
	commands.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			switch i % 8 {
			case 0:
				_, _ = s.TrimAll()
			case 1:
				_, _ = s.FlushModified()
			case 2:
				s.EmptyStandby()
			case 3:
				_, _ = hosts[i%workers].section.Trim()
			case 5:
				_, _ = s.Combine()
			case 6:
				changePageFiles(t, s)
			case 7:
				r := mm.DefaultRule()
				r.MaxResident = uint32(i/8%2) * mm.LeastResident
				if _, err := hosts[i/16%workers].section.SetRule(r); err != nil {
					t.Error(err)
				}
			case 4:
				for _, err := range s.Check() {
					t.Error(err)
				}
			}
			time.Sleep(time.Millisecond)
		}
	})
	wg.Wait()
	close(stop)
	commands.Wait()
	if !paged() {
		t.Errorf("no paging went on: %+v", s.Snapshot().Counters)
	}
	for _, h := range hosts {
		h.section.Delete()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// runProcess stores and loads in memory of a process's own, of which some pages are as those of the workers' files, until pages
// have moved, and ends the process.
func runProcess(t *testing.T, p *mm.Space, seed uint64, paged func() bool) {
	defer p.Delete()
	const pages = 60
	rnd := rand.New(rand.NewPCG(seed, 2))
	if err := p.Commit(0, pages-1); err != nil {
		t.Error(err)
		return
	}
	model := make([]byte, pages*page)
	steps := 4000
	if testing.Short() {
		steps = 800
	}
	deadline := time.Now().Add(30 * time.Second)
	for step := 0; step < steps || !paged() && time.Now().Before(deadline); step++ {
		at := rnd.IntN(pages) * page
		switch k := rnd.IntN(100); {
		case k < 40:
			data := make([]byte, page)
			for i := range data {
				data[i] = byte(k%3 + i)
			}
			if k < 5 { // a store into a page that may be shared
				data = []byte{byte(step)}
			}
			if err := p.Write(uint64(at), data); err != nil {
				t.Errorf("process %d: %v", seed, err)
				return
			}
			copy(model[at:], data)
		case k < 97:
			got := make([]byte, page)
			if err := p.Read(uint64(at), got); err != nil || !bytes.Equal(got, model[at:at+page]) {
				t.Errorf("process %d, page %d: %v, %s", seed, at/page, err, firstDifference(got, model[at:at+page]))
				return
			}
		case k < 99:
			p.Empty()
		default:
			p.Decommit(uint64(at/page), uint64(at/page))
			clear(model[at : at+page])
			if err := p.Commit(uint64(at/page), uint64(at/page)); err != nil {
				t.Errorf("process %d: %v", seed, err)
				return
			}
		}
	}
}

// changePageFiles adds a page file and removes one of the two.
func changePageFiles(t *testing.T, s *mm.System) {
	n, err := s.AddPageFile(mm.PageFileConfig{Name: "more", Store: store.NewMem(), Max: 8192})
	if err != nil {
		if !errors.Is(err, mm.StatusCommitmentLimit) { // no room for its records just now
			t.Error(err)
		}
		return
	}
	if _, err := s.RemovePageFile(1 - n); err != nil {
		t.Error(err)
		if _, err := s.RemovePageFile(n); err != nil {
			t.Error(err)
		}
	}
}

// runWorker does a number of steps, and on a machine that is busy as many more as it takes for pages to have moved.
func runWorker(t *testing.T, h *host, seed uint64, pages int64, paged func() bool) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	model := make([][]byte, pages)
	steps := 4000
	if testing.Short() {
		steps = 800
	}
	f := workerFatal{t}
	deadline := time.Now().Add(30 * time.Second)
	for step := 0; step < steps || !paged() && time.Now().Before(deadline); step++ {
		n := rnd.Int64N(pages)
		switch k := rnd.IntN(1000); {
		case k < 500:
			data := make([]byte, page)
			for i := range data {
				data[i] = byte(rnd.Uint32())
				if k < 200 { // one of three kinds, so that there is something to combine
					data[i] = byte(k%3 + i)
				}
			}
			h.store(f, n*page, data)
			model[n] = data
		case k < 980:
			if n*page >= h.size {
				continue
			}
			want := model[n]
			if want == nil {
				want = make([]byte, page)
			}
			if got := h.read(f, n*page, page); !bytes.Equal(got, want) {
				t.Errorf("worker %d, page %d: %s", seed, n, firstDifference(got, want))
				return
			}
		case k < 998:
			h.punch(f, n*page, 20*page)
			clear(model[n:min(pages, n+20)])
		default:
			h.truncate(f, n*page)
			clear(model[n:])
		}
	}
}

// workerFatal lets a worker's helper fail the test from its goroutine.
type workerFatal struct{ t *testing.T }

func (w workerFatal) Helper() { w.t.Helper() }
func (w workerFatal) Fatalf(f string, args ...any) {
	w.t.Helper()
	w.t.Errorf(f, args...)
	panic("worker failed")
}

// TestFull: when neither frame nor slot is left to promise, a write is refused whole, nothing accepted is harmed, and
// space that is given back can be used again.
func TestFull(t *testing.T) {
	c := config{frames: 64, host: 16, slots: 64}
	s := c.start(t)
	h := &host{pages: make(map[int64]*hostPage)}
	h.section = mapping.NewSection(s, h)
	data := bytes.Repeat([]byte{7}, 8*page)
	accepted := int64(0)
	for ; accepted < 200*page; accepted += int64(len(data)) {
		if err := h.section.Write(accepted, data); err != nil {
			if !errors.Is(err, mm.StatusCommitmentLimit) {
				t.Fatal(err)
			}
			break
		}
		check(t, s)
	}
	if accepted < 100*page || accepted >= 128*page {
		t.Fatalf("%d pages accepted by 64 frames and 64 slots", accepted/page)
	}
	if got := h.section.Size(); got != accepted {
		t.Fatalf("size %d after a refusal, want %d", got, accepted)
	}
	if err := h.section.Write(0, data); err != nil {
		t.Fatalf("overwriting committed pages: %v", err)
	}
	if got := h.read(t, 0, int(accepted)); !bytes.Equal(got, bytes.Repeat([]byte{7}, int(accepted))) {
		t.Fatal("accepted bytes are harmed")
	}
	h.truncate(t, accepted/2)
	if err := h.section.Write(accepted/2, data); err != nil {
		t.Fatalf("after giving half back: %v", err)
	}
	check(t, s)
	h.section.Delete()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestStoreFailures: a failed page-out loses nothing, a failed read or a flipped bit is an error for that page alone.
func TestStoreFailures(t *testing.T) {
	mem := store.NewMem()
	flaky := store.NewFlaky(mem, 1)
	b := mm.Budget{Memory: 16 << 20, Frames: 128, HostBytes: 16 * page, Reserve: 4, PageFile: 512, CommitLimit: 600, Inodes: 1}
	s, err := mm.NewFromBudget(b, mm.Config{PageFiles: []mm.PageFileConfig{{Name: "flaky", Store: flaky, Max: 512}}})
	if err != nil {
		t.Fatal(err)
	}
	h := &host{pages: make(map[int64]*hostPage)}
	h.section = mapping.NewSection(s, h)
	want := make([]byte, 64*page)
	for i := range want {
		want[i] = byte(i/page) ^ byte(i)
	}
	h.store(t, 0, want)
	must(t, h.section.Trim)

	flaky.SetFaults(store.Fault{Kind: store.Fail, Ops: store.OpWrite, Errno: unix.EIO})
	if n, err := s.FlushModified(); err == nil || n != 0 {
		t.Fatalf("flush to a store that fails = %d, %v", n, err)
	}
	check(t, s)
	if got := h.read(t, 0, len(want)); !bytes.Equal(got, want) {
		t.Fatal("bytes lost by a failed page-out")
	}
	must(t, h.section.Trim)
	flaky.SetFaults()
	must(t, s.FlushModified)
	s.EmptyStandby()

	flaky.SetFaults(store.Fault{Kind: store.Fail, Ops: store.OpRead, Errno: unix.EIO})
	if _, err := h.section.Read(0, page, make([]byte, page)); !errors.Is(err, mm.StatusInPageError) {
		t.Fatalf("read from a store that fails: %v", err)
	}
	check(t, s)
	flaky.SetFaults()
	if got := h.read(t, 0, len(want)); !bytes.Equal(got, want) {
		t.Fatal("bytes lost by a failed read")
	}

	must(t, h.section.Trim)
	must(t, s.FlushModified)
	s.EmptyStandby()
	flaky.SetFaults(store.Fault{Kind: store.Flip, Ops: store.OpRead})
	// Sixteen pages: a read of fewer reads their neighbours along, and the bit might be one of theirs.
	if _, err := h.section.Read(0, 16*page, make([]byte, 16*page)); !errors.Is(err, mm.StatusInPageError) {
		t.Fatalf("read of a flipped bit: %v", err)
	}
	if n := s.Snapshot().Counters.ChecksumErrors; n != 1 {
		t.Fatalf("%d checksum errors counted, want 1", n)
	}
	flaky.SetFaults()
	if got := h.read(t, 0, len(want)); !bytes.Equal(got, want) {
		t.Fatal("bytes lost by a flipped bit on the way")
	}
	check(t, s)
	h.section.Delete()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
