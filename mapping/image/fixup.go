package image

import (
	"io"
	"iter"
	"slices"
	"sort"
	"unsafe"
)

// FixupKind is how a place is fixed; the delta is how far the image is from where it was linked for.
type FixupKind uint8

// The kinds. Names are those of IMAGE_REL_BASED_, and Relative is ELF's.
const (
	High     FixupKind = 1  // the upper 16 bits of an address
	Low      FixupKind = 2  // the lower 16 bits
	HighLow  FixupKind = 3  // 32 bits
	HighAdj  FixupKind = 4  // the upper 16 bits of an address whose lower ones, Addend, are signed
	Dir64    FixupKind = 10 // 64 bits
	Relative FixupKind = 32 // 64 bits are Addend and the delta, whatever was there
)

// wordSize is the most that a fixup changes.
const wordSize = 8

// Fixup is a place of an image that depends on its base.
type Fixup struct {
	RVA    uint64
	Kind   FixupKind
	Addend uint64
}

// apply fixes the word at b, which has wordSize bytes at least.
func (f Fixup) apply(b []byte, delta uint64) {
	switch f.Kind {
	case High:
		le.PutUint16(b, uint16((uint32(le.Uint16(b))<<16+uint32(delta))>>16))
	case Low:
		le.PutUint16(b, le.Uint16(b)+uint16(delta))
	case HighLow:
		le.PutUint32(b, le.Uint32(b)+uint32(delta))
	case HighAdj:
		v := uint32(le.Uint16(b))<<16 + uint32(int32(int16(f.Addend))) + uint32(delta) + 0x8000
		le.PutUint16(b, uint16(v>>16))
	case Dir64:
		le.PutUint64(b, le.Uint64(b)+delta)
	case Relative:
		le.PutUint64(b, f.Addend+delta)
	}
}

// Fixups are the fixups that begin at lo or later and before hi. r is the file. An error ends them.
func (im *Image) Fixups(r io.ReaderAt, lo, hi uint64) iter.Seq2[Fixup, error] {
	return func(yield func(Fixup, error) bool) {
		if im.fixupErr != nil {
			yield(Fixup{}, im.fixupErr)
			return
		}
		if im.fixups == nil {
			return
		}
		for f, err := range im.fixups.between(im, r, lo, hi) {
			if !yield(f, err) {
				return
			}
		}
	}
}

// Fixed says whether a page is another one at another base.
func (im *Image) Fixed(page uint64) bool {
	if im.fixups == nil || im.fixupErr != nil {
		return false
	}
	lo := page * PageSize
	return im.fixups.any(lo-min(lo, wordSize-1), lo+PageSize)
}

// fixups are an image's, ordered by RVA.
type fixups interface {
	// between yields those that begin in lo..hi.
	between(im *Image, r io.ReaderAt, lo, hi uint64) iter.Seq2[Fixup, error]
	// any says whether there may be some that begin in lo..hi.
	any(lo, hi uint64) bool
	// bytes is how much memory they take.
	bytes() int
}

// Bytes is how much memory the image takes besides what all of them do: its fixups are as many as its file says.
func (im *Image) Bytes() int {
	if im.fixups == nil {
		return 0
	}
	return im.fixups.bytes()
}

// --- PE ------------------------------------------------------------------------------------------------------------------

// blocks are the base relocation blocks of a PE image, by address. Only where they are is kept; they are read again when a
// page is fixed. An entry is an offset of 12 bits, so a block matters for two pages, whatever it claims.
type blocks []block

type block struct {
	page uint32 // RVA that its entries are offsets from
	at   uint32 // RVA of its first entry
	n    uint32 // entries
}

const (
	blockHeaderSize = 8
	blockReach      = 0x1000 // what 12 bits can say
	blockChunk      = 4096   // of the directory, read at once
)

// openBlocks reads the relocation directory and checks every entry.
func openBlocks(im *Image, r io.ReaderAt, rva, size uint64) (fixups, error) {
	found := blocks{}
	if rva == 0 || size == 0 {
		return found, nil // there is nothing to fix
	}
	if s, ok := im.At(rva); !ok || rva+size > s.RVA+s.Raw {
		return blocks{}, refuse(StatusInvalidImageFormat, "relocations at 0x%x that the file does not have", rva)
	}
	var head [blockHeaderSize]byte
	for end := rva + size; end-rva >= blockHeaderSize; {
		if err := im.read(r, head[:], rva); err != nil {
			return nil, err
		}
		page, n := le.Uint32(head[:]), uint64(le.Uint32(head[4:]))
		if page == 0 && n == 0 {
			break // padding
		}
		if n < blockHeaderSize || n > end-rva || n%2 != 0 {
			return blocks{}, refuse(StatusInvalidImageFormat, "a relocation block of 0x%x bytes at 0x%x", n, rva)
		}
		b := block{page: page, at: uint32(rva + blockHeaderSize), n: uint32(n-blockHeaderSize) / 2}
		for _, err := range b.entries(im, r) {
			if err != nil {
				return blocks{}, err
			}
		}
		if b.n > 0 {
			found = append(found, b)
		}
		rva += n
	}
	slices.SortStableFunc(found, func(a, b block) int { return int(int64(a.page) - int64(b.page)) })
	return found, nil
}

// entries yields what a block says, and refuses what it cannot.
func (b block) entries(im *Image, r io.ReaderAt) iter.Seq2[Fixup, error] {
	return func(yield func(Fixup, error) bool) {
		var buf [blockChunk]byte
		var adjust *Fixup // a HighAdj whose second half comes next
		for at, left := uint64(b.at), 2*uint64(b.n); left > 0; {
			part := buf[:min(left, blockChunk)]
			if err := im.read(r, part, at); err != nil {
				yield(Fixup{}, err)
				return
			}
			at, left = at+uint64(len(part)), left-uint64(len(part))
			for ; len(part) > 0; part = part[2:] {
				e := le.Uint16(part)
				if adjust != nil {
					adjust.Addend = uint64(e)
					if !yield(*adjust, nil) {
						return
					}
					adjust = nil
					continue
				}
				f := Fixup{RVA: uint64(b.page) + uint64(e&0xfff), Kind: FixupKind(e >> 12)}
				switch f.Kind {
				case 0: // padding
					continue
				case High, Low, HighLow, HighAdj, Dir64:
				default:
					yield(f, refuse(StatusInvalidImageFormat, "a relocation of kind %d", f.Kind))
					return
				}
				if f.RVA >= im.Size {
					yield(f, refuse(StatusInvalidImageFormat, "a relocation at 0x%x, behind SizeOfImage", f.RVA))
					return
				}
				if f.Kind == HighAdj {
					adjust = &f
					continue
				}
				if !yield(f, nil) {
					return
				}
			}
		}
	}
}

func (s blocks) from(lo uint64) int {
	return sort.Search(len(s), func(i int) bool { return uint64(s[i].page)+blockReach > lo })
}

func (s blocks) any(lo, hi uint64) bool {
	i := s.from(lo)
	return i < len(s) && uint64(s[i].page) < hi
}

func (s blocks) between(im *Image, r io.ReaderAt, lo, hi uint64) iter.Seq2[Fixup, error] {
	return func(yield func(Fixup, error) bool) {
		for i := s.from(lo); i < len(s) && uint64(s[i].page) < hi; i++ {
			for f, err := range s[i].entries(im, r) {
				if err == nil && (f.RVA < lo || f.RVA >= hi) {
					continue
				}
				if !yield(f, err) || err != nil {
					return
				}
			}
		}
	}
}

// --- ELF -----------------------------------------------------------------------------------------------------------------

func (b blocks) bytes() int { return cap(b) * int(unsafe.Sizeof(block{})) }

// relatives are the relative relocations of an ELF image, by address: each of DT_RELA and DT_REL is one, and each word of
// DT_RELR too, which has a bit for each of the words that follow it.
type relatives struct {
	list []relative
	word uint64 // bytes of an address
	// inPlace: what is to be fixed holds the addend; without it, the list does.
	inPlace bool
}

type relative struct {
	rva uint64
	// addend of the word at rva, or with inPlace a bit for each word from rva on.
	bits uint64
}

func (s *relatives) bytes() int { return cap(s.list) * int(unsafe.Sizeof(relative{})) }

// reach is how far behind its rva one of the list goes.
func (s *relatives) reach() uint64 {
	if s.inPlace {
		return 64 * s.word
	}
	return 1
}

func (s *relatives) from(lo uint64) int {
	return sort.Search(len(s.list), func(i int) bool { return s.list[i].rva+s.reach() > lo })
}

func (s *relatives) any(lo, hi uint64) bool {
	i := s.from(lo)
	return i < len(s.list) && s.list[i].rva < hi
}

func (s *relatives) between(_ *Image, _ io.ReaderAt, lo, hi uint64) iter.Seq2[Fixup, error] {
	return func(yield func(Fixup, error) bool) {
		for i := s.from(lo); i < len(s.list) && s.list[i].rva < hi; i++ {
			e := s.list[i]
			if !s.inPlace {
				if !yield(Fixup{e.rva, Relative, e.bits}, nil) {
					return
				}
				continue
			}
			kind := HighLow
			if s.word == 8 {
				kind = Dir64
			}
			for rva := e.rva; e.bits != 0; rva, e.bits = rva+s.word, e.bits>>1 {
				if e.bits&1 != 0 && rva >= lo && rva < hi && !yield(Fixup{RVA: rva, Kind: kind}, nil) {
					return
				}
			}
		}
	}
}

// sorted orders the list, so that a page's fixups are found without looking at the others.
func (s *relatives) sorted() *relatives {
	slices.SortStableFunc(s.list, func(a, b relative) int {
		switch {
		case a.rva < b.rva:
			return -1
		case a.rva > b.rva:
			return 1
		}
		return 0
	})
	return s
}

// both are two lists of one image.
type both [2]fixups

func (b both) bytes() int { return b[0].bytes() + b[1].bytes() }

func (b both) any(lo, hi uint64) bool { return b[0].any(lo, hi) || b[1].any(lo, hi) }

func (b both) between(im *Image, r io.ReaderAt, lo, hi uint64) iter.Seq2[Fixup, error] {
	return func(yield func(Fixup, error) bool) {
		for _, s := range b {
			for f, err := range s.between(im, r, lo, hi) {
				if !yield(f, err) {
					return
				}
			}
		}
	}
}
