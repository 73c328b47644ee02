package mapping_test

import (
	"testing"

	"memfs/mapping"
	"memfs/mm"
	"memfs/mm/store"
)

// nullHost is a host that holds nothing and always agrees.
type nullHost struct{}

func (nullHost) WriteBack(off, n int64) error  { return nil }
func (nullHost) Invalidate(off, n int64) error { return nil }
func (nullHost) Written() bool                 { return false }

func benchSystem(b *testing.B, memory uint64, pageFile uint64) *mm.System {
	f, err := store.OpenFile(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	s, err := mm.New(mm.Config{
		Memory: memory, DirtyBounded: true,
		PageFiles: []mm.PageFileConfig{{Name: "bench", Store: f, Max: pageFile / page}},
	})
	if err != nil {
		b.Fatal(err)
	}
	s.Start()
	return s
}

func benchClose(b *testing.B, s *mm.System, section *mapping.Section) {
	b.StopTimer()
	section.Delete()
	if err := s.Close(); err != nil {
		b.Error(err)
	}
}

// BenchmarkWrite stores 1 MiB at a time, over data that fits in memory and data four times as large.
func BenchmarkWrite(b *testing.B) {
	for _, c := range []struct {
		name string
		size int64
	}{{"fits", 64 << 20}, {"4x", 1 << 30}} {
		b.Run(c.name, func(b *testing.B) {
			s := benchSystem(b, 256<<20, 2<<30)
			section := mapping.NewSection(s, nullHost{})
			data := make([]byte, 1<<20)
			b.SetBytes(int64(len(data)))
			b.ResetTimer()
			for i := int64(0); b.Loop(); i++ {
				if err := section.Write(i*int64(len(data))%c.size, data); err != nil {
					b.Fatal(err)
				}
			}
			benchClose(b, s, section)
		})
	}
}

// BenchmarkRead reads 128 KiB at a time, sequentially, from frames and from the page file.
func BenchmarkRead(b *testing.B) {
	for _, c := range []struct {
		name string
		size int64
	}{{"fits", 64 << 20}, {"4x", 1 << 30}} {
		b.Run(c.name, func(b *testing.B) {
			s := benchSystem(b, 256<<20, 2<<30)
			section := mapping.NewSection(s, nullHost{})
			data := make([]byte, 1<<20)
			for off := int64(0); off < c.size; off += int64(len(data)) {
				if err := section.Write(off, data); err != nil {
					b.Fatal(err)
				}
			}
			const n = 128 << 10
			b.SetBytes(n)
			b.ResetTimer()
			for i := int64(0); b.Loop(); i++ {
				set, err := section.Read(i*n%c.size, n, data)
				if err != nil {
					b.Fatal(err)
				}
				set.Done()
			}
			benchClose(b, s, section)
		})
	}
}

// BenchmarkSoftFault takes pages back from Standby, one at a time, from one goroutine a processor.
func BenchmarkSoftFault(b *testing.B) {
	s := benchSystem(b, 256<<20, 1<<30)
	section := mapping.NewSection(s, nullHost{})
	const pages = 8192
	if err := section.Write(0, make([]byte, pages*page)); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		reply := make([]byte, page)
		for i := int64(0); pb.Next(); i++ {
			set, err := section.Read(i%pages*page, page, reply)
			if err != nil {
				b.Error(err)
				return
			}
			set.Done()
		}
	})
	benchClose(b, s, section)
}
