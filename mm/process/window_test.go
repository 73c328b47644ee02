package process

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// fakeHost is the host kernel's cache of a process's address space, with a lock a page as there: who holds it waits for READs
// and WRITEs of the page.
type fakeHost struct {
	t      *testing.T
	window *Window

	mu sync.Mutex
	// +checklocks:mu
	pages map[uint64]*fakePage

	faults atomic.Uint64
}

type fakePage struct {
	mu sync.Mutex
	// +checklocks:mu
	data []byte // nil = not cached
	// +checklocks:mu
	dirty bool
}

func newFakeHost(t *testing.T, p *Process) *fakeHost {
	h := &fakeHost{t: t, pages: make(map[uint64]*fakePage)}
	h.window = p.Window(h)
	return h
}

func (h *fakeHost) page(n uint64) *fakePage {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pages[n] == nil {
		h.pages[n] = new(fakePage)
	}
	return h.pages[n]
}

// touch is what the processor and the host do for an access to a mapping; f gets the page's bytes. An error is SIGBUS.
func (h *fakeHost) touch(addr uint64, store bool, f func(b []byte)) error {
	pg := h.page(addr >> pageShift)
	pg.mu.Lock()
	defer pg.mu.Unlock()
	if pg.data == nil {
		buf := make([]byte, PageSize)
		h.faults.Add(1)
		if err := h.window.Fault(addr&^(PageSize-1), buf, func() bool { return true }); err != nil {
			return err
		}
		pg.data, pg.dirty = buf, false
	}
	f(pg.data[addr%PageSize:])
	pg.dirty = pg.dirty || store
	return nil
}

// Invalidate sends what is dirty and drops the pages.
func (h *fakeHost) Invalidate(off, n int64) error {
	h.mu.Lock()
	list := make(map[uint64]*fakePage)
	for i, pg := range h.pages {
		if n < 0 || i >= uint64(off)>>pageShift && i <= uint64(off+n-1)>>pageShift {
			list[i] = pg
		}
	}
	h.mu.Unlock()
	for i, pg := range list {
		pg.mu.Lock()
		if pg.data != nil && pg.dirty {
			if err := h.window.WriteBack(i<<pageShift, pg.data); err != nil {
				h.t.Errorf("write-back of page %#x: %v", i, err)
			}
		}
		pg.data = nil
		pg.mu.Unlock()
	}
	return nil
}

func (h *fakeHost) load32(t *testing.T, addr uint64) (n uint32) {
	t.Helper()
	if err := h.touch(addr, false, func(b []byte) { n = binary.LittleEndian.Uint32(b) }); err != nil {
		t.Errorf("load at %#x: %v", addr, err)
	}
	return n
}

func (h *fakeHost) store32(t *testing.T, addr uint64, n uint32) {
	t.Helper()
	if err := h.touch(addr, true, func(b []byte) { binary.LittleEndian.PutUint32(b, n) }); err != nil {
		t.Errorf("store at %#x: %v", addr, err)
	}
}

func read32(t *testing.T, p *Process, addr uint64) uint32 {
	t.Helper()
	var b [4]byte
	if err := p.Read(addr, b[:]); err != nil {
		t.Errorf("Read at %#x: %v", addr, err)
	}
	return binary.LittleEndian.Uint32(b[:])
}

func write32(t *testing.T, p *Process, addr uint64, n uint32) {
	t.Helper()
	if err := p.Write(addr, binary.LittleEndian.AppendUint32(nil, n)); err != nil {
		t.Errorf("Write at %#x: %v", addr, err)
	}
}

// TestWindowCoherent has programs with mappings and callers store into bytes of their own in the same pages at once, while
// pages are trimmed, protected and written past the cache. Each must find, both ways, what it stored last.
func TestWindowCoherent(t *testing.T) {
	m := newMachine(t, 64, 256, Image{})
	p := m.Process
	const base, pages, workers = 0x10000000, 6, 6
	rounds := 1000
	if testing.Short() {
		rounds = 300
	}
	if _, err := p.Alloc(base, pages*PageSize, MemReserve|MemCommit, ReadWrite); err != nil {
		t.Fatal(err)
	}
	h := newFakeHost(t, p)
	var wg, meddlers sync.WaitGroup
	stop := make(chan struct{})
	meddle := func(f func(r *rand.Rand)) {
		meddlers.Add(1)
		go func() {
			defer meddlers.Done()
			for r := rand.New(rand.NewPCG(1, 2)); ; {
				select {
				case <-stop:
					return
				default:
					f(r)
				}
			}
		}()
	}
	meddle(func(*rand.Rand) { p.EmptyWorkingSet() })
	meddle(func(*rand.Rand) {
		if _, err := m.sys.Combine(); err != nil {
			t.Error(err)
		}
	})
	meddle(func(r *rand.Rand) { p.space.Trim(base>>pageShift+r.Uint64N(pages), base>>pageShift+r.Uint64N(pages)) })
	meddle(func(r *rand.Rand) {
		for _, prot := range []Protection{ExecuteReadWrite, ReadWrite} {
			if _, err := p.Protect(base+r.Uint64N(pages)*PageSize, 1, prot); err != nil {
				t.Error(err)
			}
		}
	})
	meddle(func(r *rand.Rand) { _ = h.Invalidate(int64(base+r.Uint64N(pages)*PageSize), PageSize) })
	for id := range uint64(workers) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(id, 7))
			last := make([]uint32, pages)
			for i := 1; i <= rounds; i++ {
				page := r.Uint64N(pages)
				at := base + page*PageSize + 16*id
				n := uint32(i)
				switch r.IntN(6) {
				case 0, 1:
					h.store32(t, at, n)
					last[page] = n
				case 2:
					write32(t, p, at, n)
					last[page] = n
				case 3:
					// The host drops its own pages before it sends a write(2), and after it those that came meanwhile.
					_ = h.Invalidate(int64(at), 4)
					if _, err := h.window.WriteDirect(at, binary.LittleEndian.AppendUint32(nil, n), true); err != nil {
						t.Error(err)
					}
					_ = h.Invalidate(int64(at), 4)
					last[page] = n
				case 4:
					if got := h.load32(t, at); got != last[page] {
						t.Errorf("worker %d page %d: the mapping shows %d, stored %d", id, page, got, last[page])
						return
					}
				case 5:
					if got := read32(t, p, at); got != last[page] {
						t.Errorf("worker %d page %d: Read gives %d, stored %d", id, page, got, last[page])
						return
					}
				}
			}
		}()
	}
	wg.Wait()
	close(stop)
	meddlers.Wait()
	t.Logf("%d faults", h.faults.Load())
}

// TestWindowGone: what programs stored is dropped with the memory, and a new allocation is not theirs.
func TestWindowGone(t *testing.T) {
	m := newMachine(t, 64, 256, Image{})
	p := m.Process
	const base = 0x10000000
	alloc := func() {
		t.Helper()
		if _, err := p.Alloc(base, 4*PageSize, MemReserve|MemCommit, ReadWrite); err != nil {
			t.Fatal(err)
		}
	}
	alloc()
	h := newFakeHost(t, p)
	h.store32(t, base, 1)
	h.store32(t, base+PageSize, 2)
	if err := p.Discard(base+PageSize, PageSize); err != nil {
		t.Error(err)
	}
	if got := h.load32(t, base+PageSize); got != 0 {
		t.Errorf("a discarded page shows %d", got)
	}
	if err := p.Free(base, 0, MemRelease); err != nil {
		t.Error(err)
	}
	var exc *Exception
	if err := h.touch(base, false, func([]byte) {}); !errors.As(err, &exc) || exc.Code != StatusAccessViolation {
		t.Errorf("a load of freed memory: %v", err)
	}
	alloc()
	if got := h.load32(t, base); got != 0 {
		t.Errorf("a new allocation shows %d", got)
	}
	// A page that does not allow stores is not handed to who could store without being asked.
	if _, err := p.Protect(base, PageSize, ReadOnly); err != nil {
		t.Error(err)
	}
	buf := make([]byte, PageSize)
	for writable, want := range map[bool]bool{true: false, false: true} {
		if err := h.window.Fault(base, buf, func() bool { return writable }); (err == nil) != want {
			t.Errorf("a READ of a read-only page for a mapping that is writable (%v): %v", writable, err)
		}
	}
	// A guess of the host's changes nothing.
	if err := h.window.Fault(base+2*PageSize, make([]byte, 2*PageSize), func() bool { return true }); err == nil {
		t.Error("pages that were never touched were handed out for a guess")
	}
	if n := p.space.Resident(); n > 2 {
		t.Errorf("%d pages are in the working set", n)
	}
	m.End(p)
	if err := h.touch(base+PageSize, false, func([]byte) {}); err == nil {
		t.Error("memory of a process that has ended can be loaded")
	}
	if err := h.window.WriteBack(base, buf); err != nil {
		t.Errorf("a WRITE after the end: %v", err)
	}
	if w := p.Window(h); w != h.window {
		t.Error("a second window")
	}
	if n := len(m.Machine.shooter.all()); n != 0 {
		t.Errorf("%d windows are left", n)
	}
	if over := m.sys.HostPagesOver(); over > 0 {
		t.Errorf("the host is said to hold %d pages too many", over)
	}
}

// TestWindowWithoutViews: neither does the host get a page of a view, nor does what it sends reach one. A store to a view waits
// for the host to drop the file's pages, which the handler of a WRITE must not.
func TestWindowWithoutViews(t *testing.T) {
	sys := newSystem(t, 64, 64)
	m := NewMachine(sys, OptIn, Listener{})
	p, err := m.Start(Image{Arch: X64})
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := p.CreateSection(NoHandle, uint32(ReadWrite), 2*PageSize, "", false)
	if err != nil {
		t.Fatal(err)
	}
	view, err := p.MapView(h, ViewRequest{Protection: ReadWrite})
	if err != nil {
		t.Fatal(err)
	}
	write32(t, p, view, 7)
	host := newFakeHost(t, p)
	for _, n := range []uint64{1, 2} {
		if err := host.window.Fault(view, make([]byte, n*PageSize), func() bool { return false }); err == nil {
			t.Errorf("the host got %d pages of a view", n)
		}
	}
	// Mapped in between: a read(2) or write(2) that has not been let through does not get there.
	if n, err := host.window.ReadDirect(view, make([]byte, PageSize), false); n != 0 || !errors.Is(err, ErrView) {
		t.Errorf("a view that was mapped in between was read: %d bytes, %v", n, err)
	}
	if n, err := host.window.WriteDirect(view, make([]byte, PageSize), false); n != 0 || !errors.Is(err, ErrView) {
		t.Errorf("a view that was mapped in between was written: %d bytes, %v", n, err)
	}
	if n, err := host.window.ReadDirect(view, make([]byte, PageSize), true); n != PageSize || err != nil {
		t.Errorf("a view reads %d bytes, %v", n, err)
	}
	if err := host.window.WriteBack(view, make([]byte, PageSize)); err != nil {
		t.Error(err)
	}
	if n := read32(t, p, view); n != 7 {
		t.Errorf("the view was written to from the host's cache: %d", n)
	}
	if !p.ShowsSection(view+PageSize-1, 1) || p.ShowsSection(view+2*PageSize, PageSize) {
		t.Error("what shows a section is wrong")
	}
	m.End(p)
	if err := errors.Join(append(sys.Check(), sys.Close())...); err != nil {
		t.Error(err)
	}
}
