package mapping_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"memfs/mapping"
	"memfs/mm"
	"memfs/mm/store"

	"pgregory.net/rapid"
)

const page = mm.PageSize

// host is the host kernel's page cache of one file, as the manager sees it: pages appear by READs and stores, dirty ones
// come back as WRITEs, and Invalidate drops them, sending what is dirty first. It is the second half of the machine that
// the model tests: what a program reads is what the host holds, else what the section says.
type host struct {
	mu      sync.Mutex
	section *mapping.Section
	size    int64
	pages   map[int64]*hostPage
}

type hostPage struct {
	bytes [page]byte
	dirty bool
}

func (h *host) read(t fataler, off int64, n int) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []byte
	for n > 0 {
		p, err := h.fault(off / page)
		if err != nil {
			t.Fatalf("read at %d: %v", off, err)
		}
		k := min(n, page-int(off%page))
		out = append(out, p.bytes[off%page:][:k]...)
		off, n = off+int64(k), n-k
	}
	return out
}

func (h *host) store(t fataler, off int64, data []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.size = max(h.size, off+int64(len(data)))
	for len(data) > 0 {
		p, err := h.fault(off / page)
		if err != nil {
			t.Fatalf("store at %d: %v", off, err)
		}
		k := copy(p.bytes[off%page:], data)
		p.dirty = true
		off, data = off+int64(k), data[k:]
	}
}

// direct is a write(2) with O_DIRECT: the range leaves the host's cache first.
func (h *host) direct(t fataler, off int64, data []byte) {
	if err := h.Invalidate(off, int64(len(data))); err != nil {
		t.Fatalf("invalidate: %v", err)
	}
	if err := h.section.Write(off, data); err != nil {
		t.Fatalf("direct write at %d: %v", off, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.size = max(h.size, off+int64(len(data)))
}

// fault brings a page into the host's cache by a READ.
func (h *host) fault(n int64) (*hostPage, error) {
	if p := h.pages[n]; p != nil {
		return p, nil
	}
	p := &hostPage{}
	set, err := h.section.Read(n*page, page, make([]byte, page))
	if err != nil {
		return nil, err
	}
	if set != nil {
		b := p.bytes[:0]
		for _, s := range set.Slices() {
			b = append(b, s...)
		}
		if len(b) != set.Size() {
			return nil, fmt.Errorf("%d bytes in a set of %d", len(b), set.Size())
		}
		set.Done()
	}
	h.pages[n] = p
	return p, nil
}

func (h *host) WriteBack(off, n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clean(off, n)
}

// clean sends the dirty pages of a range, neighbours in one WRITE, the last one cut off at the end of the file.
func (h *host) clean(off, n int64) error {
	var dirty []int64
	for i, p := range h.pages {
		if p.dirty && (n < 0 || i*page < off+n && (i+1)*page > off) {
			dirty = append(dirty, i)
		}
	}
	slices.Sort(dirty)
	for len(dirty) > 0 {
		first := dirty[0]
		var data []byte
		for len(dirty) > 0 && dirty[0] == first+int64(len(data))/page {
			p := h.pages[dirty[0]]
			data = append(data, p.bytes[:]...)
			p.dirty = false
			dirty = dirty[1:]
		}
		if k := min(int64(len(data)), h.size-first*page); k > 0 {
			if err := h.section.Write(first*page, data[:k]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *host) Invalidate(off, n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.clean(off, n); err != nil {
		return err
	}
	for i := range h.pages {
		if n < 0 || i*page < off+n && (i+1)*page > off {
			delete(h.pages, i)
		}
	}
	return nil
}

// Written says that programs may be writing at any time.
func (h *host) Written() bool { return true }

// truncate is what the kernel does around a SETATTR of the size.
func (h *host) truncate(t fataler, size int64) {
	if err := h.WriteBack(0, -1); err != nil {
		t.Fatalf("write-back: %v", err)
	}
	if err := h.section.Truncate(size); err != nil {
		t.Fatalf("truncate to %d: %v", size, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, p := range h.pages {
		switch keep := size - i*page; {
		case keep <= 0:
			delete(h.pages, i)
		case keep < page:
			clear(p.bytes[keep:])
		}
	}
	h.size = size
}

func (h *host) punch(t fataler, off, n int64) {
	if err := h.WriteBack(0, -1); err != nil {
		t.Fatalf("write-back: %v", err)
	}
	if err := h.section.Punch(off, n); err != nil {
		t.Fatalf("punch [%d, +%d): %v", off, n, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.pages {
		if i*page < off+n && (i+1)*page > off {
			delete(h.pages, i)
		}
	}
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

// config is one machine of the matrix.
type config struct {
	name   string
	frames uint64
	host   uint64 // pages that the host may hold
	slots  uint64

	encrypt    bool
	compressed uint64 // bytes; 0 is none
}

var matrix = []config{
	{"16 frames", 16, 8, 4096, false, 0},
	{"16 frames, host holds all", 16, 4096, 4096, false, 0},
	{"100 frames, host holds nothing", 100, 1, 4096, false, 0},
	{"4096 frames, no page file", 4096, 100, 0, false, 0},
	{"4096 frames", 4096, 1000, 4096, false, 0},
	{"16 frames, encrypted", 16, 8, 512, true, 0},
	{"200 frames, compressed", 200, 8, 4096, false, 128 << 10},
	{"4096 frames, compressed", 4096, 8, 4096, false, 4 << 20},
}

// most is how many times its frames a machine can grow to.
const most = 3

// budget is the division of a machine that has been resized to so many frames.
func (c config) budget(frames uint64) mm.Budget {
	return mm.Budget{
		Memory: frames << 20, Frames: frames, HostBytes: c.host * page, Reserve: 4, PageFile: c.slots,
		CommitLimit: frames - 4 + c.slots, Inodes: 100,
	}
}

func (c config) start(t fataler) *mm.System { return c.startOn(t, store.NewMem()) }

// startOn starts a machine with a page file on the given store.
func (c config) startOn(t fataler, disk mm.Store) *mm.System {
	t.Helper()
	b := c.budget(c.frames)
	cfg := mm.Config{Memory: b.Memory, MaxMemory: most * c.frames * 2 * page, Encrypt: c.encrypt}
	if c.slots > 0 {
		cfg.PageFiles = []mm.PageFileConfig{{Name: "test", Store: disk, Max: c.slots}}
	}
	if c.compressed > 0 {
		z, err := store.NewCompressed("s2", 2*c.compressed)
		if err != nil {
			t.Fatalf("%v", err)
		}
		cfg.Compressed = &mm.CompressedConfig{Store: z, Limit: c.compressed, Slots: 1000}
	}
	s, err := mm.NewFromBudget(b, cfg)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return s
}

func check(t fataler, s *mm.System) {
	t.Helper()
	if errs := s.Check(); len(errs) > 0 {
		t.Fatalf("check: %v", errors.Join(errs...))
	}
}

// TestModel runs random operations on two files against byte slices, on machines from roomy to absurdly small, with the
// daemons' work done by steps, and proves every invariant after each.
func TestModel(t *testing.T) {
	for _, c := range matrix {
		t.Run(c.name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { runModel(t, c) })
		})
	}
}

func runModel(t *rapid.T, c config) {
	const files, longest = 2, 90 * page
	s := c.start(t)
	var (
		hosts [files]*host
		model [files][]byte
	)
	for i := range hosts {
		hosts[i] = &host{pages: make(map[int64]*hostPage)}
		hosts[i].section = mapping.NewSection(s, hosts[i])
	}
	file := rapid.IntRange(0, files-1)
	offset := rapid.OneOf(rapid.IntRange(0, longest), rapid.Map(rapid.IntRange(0, longest/page), func(p int) int { return p * page }))
	length := rapid.OneOf(rapid.IntRange(1, 3*page), rapid.Map(rapid.IntRange(1, 40), func(p int) int { return p * page }))
	// fits keeps the model inside what the machine can promise, so that nothing may fail.
	fits := func(i int, end int) bool {
		total := 2 * files * 64 // records
		for j, m := range model {
			n := len(m)
			if j == i {
				n = max(n, end)
			}
			total += (n + page - 1) / page
		}
		return uint64(total) < c.frames-4+c.slots || c.frames > 1000
	}
	t.Repeat(map[string]func(*rapid.T){
		"": func(t *rapid.T) { check(t, s) },
		"store": func(t *rapid.T) {
			i, off, n := file.Draw(t, "file"), offset.Draw(t, "offset"), length.Draw(t, "length")
			if off+n > longest || !fits(i, off+n) {
				t.Skip("too long")
			}
			b := byte(rapid.IntRange(1, 255).Draw(t, "byte"))
			data := make([]byte, n)
			for k := range data {
				data[k] = b + byte(k/7)
			}
			if rapid.IntRange(0, 3).Draw(t, "direct") == 0 {
				hosts[i].direct(t, int64(off), data)
			} else {
				hosts[i].store(t, int64(off), data)
			}
			if grow := off + n - len(model[i]); grow > 0 {
				model[i] = append(model[i], make([]byte, grow)...)
			}
			copy(model[i][off:], data)
		},
		"read": func(t *rapid.T) {
			i, off, n := file.Draw(t, "file"), offset.Draw(t, "offset"), length.Draw(t, "length")
			if off >= len(model[i]) {
				t.Skip("past the end")
			}
			n = min(n, len(model[i])-off)
			if got := hosts[i].read(t, int64(off), n); !bytes.Equal(got, model[i][off:off+n]) {
				t.Fatalf("file %d [%d, +%d): %s", i, off, n, firstDifference(got, model[i][off:off+n]))
			}
		},
		"truncate": func(t *rapid.T) {
			i, size := file.Draw(t, "file"), offset.Draw(t, "size")
			if !fits(i, size) {
				t.Skip("too long")
			}
			hosts[i].truncate(t, int64(size))
			if size <= len(model[i]) {
				model[i] = model[i][:size:size]
			} else {
				model[i] = append(model[i], make([]byte, size-len(model[i]))...)
			}
		},
		"punch": func(t *rapid.T) {
			i, off, n := file.Draw(t, "file"), offset.Draw(t, "offset"), length.Draw(t, "length")
			hosts[i].punch(t, int64(off), int64(n))
			if off < len(model[i]) {
				clear(model[i][off:min(off+n, len(model[i]))])
			}
		},
		"allocate": func(t *rapid.T) {
			i, off, n := file.Draw(t, "file"), offset.Draw(t, "offset"), length.Draw(t, "length")
			if off+n > longest || !fits(i, off+n) {
				t.Skip("too long")
			}
			if err := hosts[i].section.Allocate(int64(off), int64(n), true); err != nil {
				t.Fatalf("allocate: %v", err)
			}
		},
		"trim file": func(t *rapid.T) {
			i := file.Draw(t, "file")
			if _, err := hosts[i].section.Trim(); err != nil {
				t.Fatalf("trim: %v", err)
			}
			if got := hosts[i].section.Info(); got.Active != 0 && !hosts[i].section.Rule().Pinned || got.HostCached != 0 {
				t.Fatalf("after a trim: %+v", got)
			}
		},
		"resize": func(t *rapid.T) {
			// To any number of frames that all that fits into the machine fits into as well.
			n := rapid.Uint64Range(c.frames, most*c.frames).Draw(t, "frames")
			resizeTo(t, s, c.budget(n))
		},
		"shrink": func(t *rapid.T) {
			// To fewer, if that can be promised, and back.
			was := s.Budget()
			n := rapid.Uint64Range(8, c.frames).Draw(t, "frames")
			if n*page < 2*c.compressed {
				t.Skip("compressed memory is half of the frames at most")
			}
			if kept, _ := s.Resident(); kept > n/2 {
				if r, err := s.Resize(c.budget(n)); !errors.Is(err, mm.StatusInvalidParameter) || r.Budget != was || s.Budget() != was {
					t.Fatalf("shrinking to %d frames with %d pages kept: %+v, %v", n, kept, r, err)
				}
				return
			}
			if s.Snapshot().Commit > c.budget(n).CommitLimit {
				if r, err := s.Resize(c.budget(n)); !errors.Is(err, mm.StatusBusy) || r.Budget != was || s.Budget() != was {
					t.Fatalf("shrinking to %d frames with %d pages promised: %+v, %v", n, s.Snapshot().Commit, r, err)
				}
				return
			}
			resizeTo(t, s, c.budget(n))
			check(t, s)
			resizeTo(t, s, was)
		},
		"trim all":      func(t *rapid.T) { must(t, s.TrimAll) },
		"flush":         func(t *rapid.T) { must(t, s.FlushModified) },
		"flush file":    func(t *rapid.T) { must(t, hosts[file.Draw(t, "file")].section.Flush) },
		"empty standby": func(t *rapid.T) { s.EmptyStandby() },
		"combine": func(t *rapid.T) {
			if _, err := s.Combine(); err != nil && !errors.Is(err, mm.StatusCommitmentLimit) {
				t.Fatalf("combine: %v", err)
			}
		},
		"same": func(t *rapid.T) { // pages of one file are those of another, so that there is something to combine
			from, to := file.Draw(t, "from"), file.Draw(t, "to")
			n := len(model[from]) &^ (page - 1)
			if n == 0 || !fits(to, n) {
				t.Skip("nothing to copy")
			}
			data := bytes.Clone(model[from][:n])
			hosts[to].direct(t, 0, data)
			if grow := n - len(model[to]); grow > 0 {
				model[to] = append(model[to], make([]byte, grow)...)
			}
			copy(model[to], data)
		},
		"page files": func(t *rapid.T) { // one more, and one of the two goes
			if c.slots == 0 {
				t.Skip("no page files")
			}
			was := s.Budget()
			_, err := s.AddPageFile(mm.PageFileConfig{Name: "more", Store: store.NewMem(), Max: c.slots,
				Priority: rapid.IntRange(0, 2).Draw(t, "priority")})
			if errors.Is(err, mm.StatusCommitmentLimit) || errors.Is(err, mm.StatusInvalidParameter) {
				t.Skip("no room for its records")
			}
			if err != nil {
				t.Fatalf("adding a page file: %v", err)
			}
			check(t, s)
			files := s.Snapshot().PageFiles
			if rapid.Bool().Draw(t, "flush") {
				must(t, s.TrimAll)
				must(t, s.FlushModified)
			}
			n := files[rapid.IntRange(0, len(files)-1).Draw(t, "which")].Number
			if _, err := s.RemovePageFile(n); err != nil {
				t.Fatalf("removing page file %d: %v", n, err)
			}
			if s.Budget() != was {
				t.Fatalf("afterwards the budget is %+v, it was %+v", s.Budget(), was)
			}
		},
		"zero": func(t *rapid.T) { s.ZeroFree() },
		"forgotten": func(t *rapid.T) {
			h := hosts[file.Draw(t, "file")]
			if err := h.Invalidate(0, -1); err != nil {
				t.Fatalf("invalidate: %v", err)
			}
			h.section.Forgotten()
		},
		"prefetch": func(t *rapid.T) {
			i, off, n := file.Draw(t, "file"), offset.Draw(t, "offset"), length.Draw(t, "length")
			if _, err := hosts[i].section.Prefetch(int64(off), int64(n)); err != nil {
				t.Fatalf("prefetch: %v", err)
			}
		},
		"rule": func(t *rapid.T) {
			r := mm.Rule{Priority: uint8(rapid.IntRange(0, 7).Draw(t, "priority"))}
			if c.frames >= 1000 { // else a file's pages may take all frames, and no daemon makes room
				r.Pinned, r.NoSwap = rapid.Bool().Draw(t, "pinned"), rapid.Bool().Draw(t, "noswap")
			}
			if !r.Pinned && !r.NoSwap {
				r.MaxResident = rapid.SampledFrom([]uint32{0, 0, mm.LeastResident, 100}).Draw(t, "working-set limit")
			}
			if _, err := hosts[file.Draw(t, "file")].section.SetRule(r); err != nil {
				t.Fatalf("rule %+v: %v", r, err)
			}
		},
		"bound": func(t *rapid.T) {
			g := hosts[file.Draw(t, "file")].section.Segment()
			if _, _, err := g.Bound(); err != nil {
				t.Fatalf("bound: %v", err)
			}
		},
		"seek": func(t *rapid.T) {
			i, off := file.Draw(t, "file"), offset.Draw(t, "offset")
			if err := hosts[i].WriteBack(0, -1); err != nil {
				t.Fatalf("write-back: %v", err)
			}
			hole, err := hosts[i].section.SeekHole(int64(off))
			if off >= len(model[i]) {
				if !errors.Is(err, mm.StatusNoData) {
					t.Fatalf("SeekHole past the end: %d, %v", hole, err)
				}
				return
			}
			if err != nil || hole > int64(len(model[i])) {
				t.Fatalf("SeekHole(%d) = %d, %v in %d bytes", off, hole, err, len(model[i]))
			}
			if data, err := hosts[i].section.SeekData(int64(off)); err == nil && !zeroes(model[i][off:data]) ||
				err != nil && !zeroes(model[i][off:]) {
				t.Fatalf("SeekData(%d) = %d, %v skips data", off, data, err)
			}
		},
	})
	for i, h := range hosts {
		if got := h.read(t, 0, len(model[i])); !bytes.Equal(got, model[i]) {
			t.Fatalf("at the end, file %d: %s", i, firstDifference(got, model[i]))
		}
		h.section.Delete()
	}
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func resizeTo(t fataler, s *mm.System, b mm.Budget) {
	t.Helper()
	r, err := s.Resize(b)
	if err != nil {
		t.Fatalf("resize to %d frames: %v (%+v)", b.Frames, err, r)
	}
	if got := s.Snapshot(); got.Frames != b.Frames || got.Retired != 0 || got.Budget != b || r.Budget != b {
		t.Fatalf("after a resize to %+v: %+v, and %d frames, %d retired", b, got.Budget, got.Frames, got.Retired)
	}
}

func must(t fataler, f func() (uint64, error)) {
	t.Helper()
	if _, err := f(); err != nil {
		t.Fatalf("%v", err)
	}
}

func zeroes(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func firstDifference(got, want []byte) string {
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			return fmt.Sprintf("byte %d of %d/%d differs", i, len(got), len(want))
		}
	}
	return "equal"
}
