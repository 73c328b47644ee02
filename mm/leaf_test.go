package mm

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func newTestSystem(t testing.TB, frames uint64) *System {
	t.Helper()
	b := Budget{Memory: 16 << 20, Frames: frames, HostBytes: frames * PageSize, Reserve: 4, CommitLimit: frames - 4}
	s, err := NewFromBudget(b, Config{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// noHost is a host that holds nothing.
type noHost struct{}

func (noHost) WriteBack(off, n int64) error  { return nil }
func (noHost) Invalidate(off, n int64) error { return nil }
func (noHost) Written() bool                 { return false }

// TestRadixTree compares the tree of leaves with a sorted list of keys, from one key to keys at the far end of 8 EiB, and
// sees that nothing of it is left when the keys are gone.
//
// +checklocksignore
func TestRadixTree(t *testing.T) {
	const last = uint64(MaxSize) >> PageShift >> viewShift
	s := newTestSystem(t, 2000)
	g := s.NewSegment(noHost{})
	rnd := rand.New(rand.NewPCG(1, 2))
	var keys []uint64
	pick := func() uint64 {
		switch rnd.IntN(4) {
		case 0:
			return rnd.Uint64N(4)
		case 1:
			return rnd.Uint64N(5000)
		case 2:
			return last - rnd.Uint64N(100)
		default:
			return rnd.Uint64N(last + 1)
		}
	}
	g.mu.Lock()
	for range 3000 {
		key := pick()
		i, has := slices.BinarySearch(keys, key)
		if rnd.IntN(3) > 0 && len(keys) < 500 {
			id, err := g.makeLeaf(key, 0)
			if err != nil {
				t.Fatal(err)
			}
			if base := s.rec.leaves.At(id).base; base != key<<viewShift {
				t.Fatalf("leaf for key %#x has base %#x", key, base)
			}
			if !has {
				keys = slices.Insert(keys, i, key)
			}
		} else {
			g.dropLeafIfEmpty(key)
			if has {
				keys = slices.Delete(keys, i, i+1)
			}
		}
		if _, has := slices.BinarySearch(keys, key); has != (g.leafAt(key) != 0) {
			t.Fatalf("key %#x: in the tree %v, want %v", key, !has, has)
		}
		probe := pick()
		want, ok := slices.BinarySearch(keys, probe)
		_ = ok
		k, id := g.nextLeaf(probe)
		if (id != 0) != (want < len(keys)) || id != 0 && k != keys[want] {
			t.Fatalf("nextLeaf(%#x) = %#x, %d; want index %d of %d keys", probe, k, id, want, len(keys))
		}
	}
	for _, key := range keys {
		g.dropLeafIfEmpty(key)
	}
	if g.root != 0 || g.leaves != 0 || s.rec.branches.Live() != 0 || s.rec.leaves.Live() != 0 || s.recordBytes() != 0 {
		t.Errorf("left over: root %d, %d leaves, %d branches, %d bytes", g.root, g.leaves, s.rec.branches.Live(), s.recordBytes())
	}
	g.mu.Unlock()
	g.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestRadixTreeFull inserts far-apart keys until the budget refuses, over and over with another byte of it left each time,
// so that the refusal meets every step of an insertion: nothing of a key that was refused may stay behind.
//
// +checklocksignore
func TestRadixTreeFull(t *testing.T) {
	s := newTestSystem(t, 100)
	for left := range 6 * branchBytes / 8 {
		ballast := 96*PageSize - 2*PageSize - left*8
		if err := s.ChargeRecord(ballast); err != nil {
			t.Fatal(err)
		}
		g := s.NewSegment(noHost{})
		g.mu.Lock()
		var keys []uint64
		for i := range uint64(200) {
			key := i << (6 * (i % 6))
			if _, err := g.makeLeaf(key, 0); err != nil {
				break
			}
			keys = append(keys, key)
		}
		if len(keys) == 200 {
			t.Fatal("nothing was refused")
		}
		for _, key := range keys {
			g.dropLeafIfEmpty(key)
		}
		if n := s.rec.branches.Live(); n != 0 || g.root != 0 || g.height != 0 {
			t.Fatalf("%d bytes short of two pages, %d keys: %d branches left over", left*8, len(keys), n)
		}
		g.mu.Unlock()
		g.Delete()
		s.ReleaseRecord(ballast)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestRecordCost holds the records to what the design allows: 64 bytes a frame, 16 a page, 24 a slot.
func TestRecordCost(t *testing.T) {
	if n := float64(leafCost(3)+branchBytes/branchWidth) / ViewPages; n > 16 {
		t.Errorf("%.1f bytes a page", n)
	}
	if SealedSlotBytes > 24 {
		t.Errorf("%v bytes a slot", SealedSlotBytes)
	}
}

// TestRecordsTakeFrames: what records take is out of use as frames, and comes back.
func TestRecordsTakeFrames(t *testing.T) {
	s := newTestSystem(t, 100)
	if err := s.ChargeRecord(10*PageSize + 1); err != nil {
		t.Fatal(err)
	}
	s.syncRecords()
	if n := s.Snapshot(); n.RecordFrames != 11 || n.Active != 11 || n.Commit != 11 {
		t.Fatalf("after 10 pages and a byte of records: %d record frames, %d active, commit %d", n.RecordFrames, n.Active, n.Commit)
	}
	if err := s.ChargeRecord(90 * PageSize); err != StatusCommitmentLimit {
		t.Fatalf("records beyond the commit limit: %v", err)
	}
	for _, err := range s.Check() {
		t.Error(err)
	}
	s.ReleaseRecord(10*PageSize + 1)
	s.syncRecords()
	if n := s.Snapshot(); n.RecordFrames != 0 || n.Commit != 0 || n.Free+n.Zeroed != 100 {
		t.Fatalf("after giving them back: %+v", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name string
		c    Config
		ok   bool
	}{
		{"small", Config{Memory: MinMemory}, true},
		{"too small", Config{Memory: MinMemory - 1}, false},
		{"64M with 2G", Config{Memory: 64 << 20, DirtyBounded: true, PageFiles: []PageFileConfig{{Max: 2 << 30 / PageSize}}}, true},
		{"records take over half", Config{Memory: 64 << 20, PageFiles: []PageFileConfig{{Max: 1 << 40 / PageSize}}}, false},
		{"no share for the host", Config{Memory: 64 << 20, HostShare: 0.01}, false},
	} {
		b, err := Plan(c.c)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err != nil {
			continue
		}
		if sum := b.HostBytes + b.Frames*PageSize + b.PFNBytes; sum > b.Memory || sum < b.Memory-2*PageSize {
			t.Errorf("%s: host, frames and PFN database make %d of %d bytes", c.name, sum, b.Memory)
		}
	}
}
