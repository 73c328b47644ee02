package win32

// ParseDEPFlags reads the flags of SetProcessDEPPolicy as people write them: a number, the names of constants, or on or off.
func ParseDEPFlags(text string) (flags uint32, err error) {
	switch text {
	case "on":
		text = "PROCESS_DEP_ENABLE"
	case "off":
		text = "0"
	}
	n, err := Evaluate(text, nil)
	if err == nil && n>>32 != 0 {
		err = syntaxf("%s has more than 32 bits", text)
	}
	return uint32(n), err
}
