package mapping_test

import (
	"bytes"
	"testing"

	"memfs/mapping"
	"memfs/mm"
)

// TestCompression writes pages of four kinds, text, noise, zeros and one word, more of them than compressed memory can
// take: what compresses goes there and on to the page file when it has been there longest, noise goes to the page file at
// once, all of it comes back, and nothing stays behind.
func TestCompression(t *testing.T) {
	s := config{frames: 1000, host: 64, slots: 8192, compressed: 32 << 10}.start(t)
	h := &host{pages: make(map[int64]*hostPage)}
	h.section = mapping.NewSection(s, h)
	const pages = 1200
	content := func(i int) []byte {
		b := make([]byte, page)
		switch i % 4 {
		case 0:
			copy(b, bytes.Repeat([]byte{byte(i), byte(i >> 8), 'a', 'b', 'c'}, 300))
		case 1:
			copy(b, noise(uint64(i)))
		case 2:
			copy(b, bytes.Repeat([]byte{byte(i), 2, 3, 4, 5, 6, 7, 8}, page/8))
		}
		return b
	}
	leave := func() {
		must(t, s.TrimAll)
		must(t, s.FlushModified)
		s.EmptyStandby()
		s.Migrate()
		check(t, s)
	}
	for i := range pages {
		if i%64 == 0 {
			leave()
		}
		h.direct(t, int64(i)*page, content(i))
	}
	leave()
	snap := s.Snapshot()
	z, info := snap.Compressed, h.section.Info()
	if z.Pages == 0 || z.Pages < 100 || z.Rejected == 0 || z.Memory > z.Limit+64<<10 {
		t.Errorf("compressed memory: %+v", z)
	}
	if snap.Counters.PagesMigrated == 0 {
		t.Error("nothing was moved on to the page file")
	}
	if info.Compressed != z.Pages || info.Paged != pages-z.Pages {
		t.Errorf("of %d pages, %d are compressed and %d paged; %d are in compressed memory", pages, info.Compressed, info.Paged, z.Pages)
	}
	for i := range pages {
		if i%64 == 0 {
			must(t, s.TrimAll)
			must(t, s.FlushModified)
		}
		if got := h.read(t, int64(i)*page, page); !bytes.Equal(got, content(i)) {
			t.Fatalf("page %d holds other bytes", i)
		}
	}
	check(t, s)
	h.section.Delete()
	check(t, s)
	if z := s.Snapshot().Compressed; z.Pages != 0 || z.Memory != 0 {
		t.Errorf("left in compressed memory: %+v", z)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// noise is a page that does not compress.
func noise(seed uint64) []byte {
	b := make([]byte, page)
	for i := range b {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i] = byte(seed >> 56)
	}
	return b
}

// TestCompressedBudget: compressed memory may take four fifths of the frames at most.
func TestCompressedBudget(t *testing.T) {
	c := mm.Config{Memory: 64 << 20, Compressed: &mm.CompressedConfig{Limit: 10 << 20}}
	b, err := mm.Plan(c)
	if err != nil || b.Compressed != 10<<20 {
		t.Errorf("10 MiB of 64: %v, %v", b.Compressed, err)
	}
	c.Compressed.Limit = 40 << 20
	if _, err := mm.Plan(c); err == nil {
		t.Error("40 MiB of 64, a third of which is the host's, were accepted")
	}
}
