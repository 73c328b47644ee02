package win32

import (
	"fmt"
	"strconv"
	"strings"
)

// maxLine is the longest line that is looked at, in bytes: a Write of 256 KiB in hexadecimal.
const maxLine = 1 << 20

// statement is a line taken apart: [P2:] [~thread] [name =] call arguments.
type statement struct {
	process  string // name before a colon; empty is the session's own
	thread   string // a number or $name after a tilde; empty is the main thread
	variable string
	call     string
	args     []token
}

// token is one argument as written.
type token struct {
	text   string
	quoted bool
}

// syntaxError is a line that makes no sense: told apart from what a call says.
type syntaxError string

func (e syntaxError) Error() string { return string(e) }

func syntaxf(format string, args ...any) error { return syntaxError(fmt.Sprintf(format, args...)) }

// split cuts a line into words. Double quotes make a string of everything between them; \" and \\ stand for themselves
// there only before a quote or at the end, so that "Local\name" is what it says.
func split(line string) (words []token, err error) {
	if len(line) > maxLine {
		return nil, syntaxf("a line of %d bytes is too long: at most %d", len(line), maxLine)
	}
	for i := 0; i < len(line); {
		switch c := line[i]; {
		case c == ' ' || c == '\t' || c == '\r':
			i++
		case c == '#':
			return words, nil
		case c == '"':
			end := strings.IndexByte(line[i+1:], '"')
			if end < 0 {
				return nil, syntaxf("a string is not closed")
			}
			words = append(words, token{line[i+1 : i+1+end], true})
			i += end + 2
			if i < len(line) && !strings.ContainsRune(" \t\r", rune(line[i])) {
				return nil, syntaxf("after a string, a blank is wanted")
			}
		case c < ' ' || c > '~':
			return nil, syntaxf("byte 0x%02x does not belong in a line", c)
		default:
			end := i
			for end < len(line) && line[end] > ' ' && line[end] <= '~' && line[end] != '"' {
				end++
			}
			words = append(words, token{line[i:end], false})
			i = end
		}
	}
	return words, nil
}

// parse takes a line apart; a nil statement is an empty line.
func parse(line string) (*statement, error) {
	words, err := split(line)
	if err != nil || len(words) == 0 {
		return nil, err
	}
	st := &statement{}
	if w := words[0]; !w.quoted && strings.HasSuffix(w.text, ":") && isName(strings.TrimSuffix(w.text, ":")) {
		st.process = strings.TrimSuffix(w.text, ":")
		words = words[1:]
	}
	if len(words) > 0 && !words[0].quoted && len(words[0].text) > 1 && words[0].text[0] == '~' {
		st.thread = words[0].text[1:]
		words = words[1:]
	}
	if len(words) >= 2 && words[1] == (token{"=", false}) {
		if st.variable = words[0].text; words[0].quoted || !isName(st.variable) {
			return nil, syntaxf("%q is no name for a variable", words[0].text)
		}
		words = words[2:]
	}
	if len(words) == 0 || words[0].quoted || !isName(words[0].text) {
		return nil, syntaxf("a call is wanted, such as VirtualQuery 0x10000")
	}
	st.call, st.args = words[0].text, words[1:]
	return st, nil
}

// isName says whether s is a letter followed by letters, digits and underscores.
func isName(s string) bool {
	for i, c := range s {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// Evaluate is the value of an expression of the language, as a call's argument would have it. variable may be nil.
func Evaluate(expression string, variable func(string) (uint64, bool)) (uint64, error) {
	if variable == nil {
		variable = func(string) (uint64, bool) { return 0, false }
	}
	return number(expression, variable)
}

// number evaluates an argument: terms joined by | (or), + and −, which may also come before the first one. A term is a decimal
// or 0x number, the name of a constant, $name of a variable, or ~ before one of these.
func number(s string, variable func(string) (uint64, bool)) (uint64, error) {
	var total uint64
	op, rest := byte('|'), s
	if strings.HasPrefix(s, "-") {
		op, rest = '-', s[1:]
	}
	for {
		end := strings.IndexAny(rest, "|+-")
		if end == 0 {
			return 0, syntaxf("%q is no number", s)
		}
		word := rest
		if end > 0 {
			word = rest[:end]
		}
		n, err := term(word, variable)
		if err != nil {
			return 0, err
		}
		switch op {
		case '|':
			total |= n
		case '+':
			total += n
		case '-':
			total -= n
		}
		if end < 0 {
			return total, nil
		}
		op, rest = rest[end], rest[end+1:]
	}
}

func term(s string, variable func(string) (uint64, bool)) (uint64, error) {
	switch {
	case s == "":
		return 0, syntaxf("a number is missing")
	case s[0] == '~':
		n, err := term(s[1:], variable)
		return ^n, err
	case s[0] == '$':
		n, ok := variable(s[1:])
		if !ok {
			return 0, syntaxf("there is no variable %s", s)
		}
		return n, nil
	case s[0] >= '0' && s[0] <= '9':
		base, digits := 10, s
		if strings.HasPrefix(s, "0x") || strings.HasPrefix(s, "0X") {
			base, digits = 16, s[2:]
		}
		n, err := strconv.ParseUint(digits, base, 64)
		if err != nil {
			return 0, syntaxf("%q is no number of 64 bits", s)
		}
		return n, nil
	}
	if n, ok := constants[s]; ok {
		return n, nil
	}
	return 0, syntaxf("there is no constant %s", s)
}
